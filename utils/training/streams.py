"""Random streams that do not meet: what is drawn for one purpose says nothing about another."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream is for; the numbers are part of what a seed means."""

    ORDER = 1  # of the samples of an epoch
    SAMPLE = 2  # its label, prompts, ROI and augmentation
    ROUNDS = 3  # of a step: which have a point, or a gradient
    SYNTHETIC = 4  # a case that is made


def stream(purpose: Stream, *key: int) -> np.random.Generator:
    """The generator of a purpose and a key such as seed, epoch and index.

    NumPy pads short keys with zeros: without the purpose, (seed, epoch) and (seed, epoch, 0) would
    be one stream.
    """
    return np.random.default_rng((purpose, *key))
