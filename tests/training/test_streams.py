"""Random streams: the same again for the same key, and no two alike."""

from itertools import product

import numpy as np

from utils.training.streams import Stream, stream


def test_a_stream_follows_from_purpose_and_key():
    again = stream(Stream.SAMPLE, 5, 2, 7)
    np.testing.assert_array_equal(stream(Stream.SAMPLE, 5, 2, 7).random(4), again.random(4))


def test_streams_of_other_keys_differ():
    numbers = {stream(Stream.SAMPLE, *key).random() for key in product(range(4), repeat=3)}
    assert len(numbers) == 4**3


def test_streams_of_other_purposes_differ_although_numpy_pads_keys_with_zeros():
    keys = [(0,), (0, 0), (0, 0, 0), (3, 1), (3, 1, 0)]
    drawn = [{stream(purpose, *key).random() for key in keys} for purpose in Stream]
    assert len(set.union(*drawn)) == sum(len(numbers) for numbers in drawn)
