"""A GPU's memory that does not hold a batch: halves of it, with the same answers."""

import warnings

import numpy as np
import pytest
import torch

from conftest import SHAPE, SPACING
from segment_anything.batches import Batches
from segment_anything.prompts import Box, Click, Prompts
from utils.formats.case import Case
from utils.inference.method import make_segmenter


class Asked:
    """Doubles numbers, as many at a time as memory allows."""

    def __init__(self, room: int) -> None:
        self.room, self.sizes = room, []

    def __call__(self, batch):
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [2 * number for number in batch]


def test_batches_are_full_while_there_is_memory():
    ask = Asked(8)
    assert list(Batches(8).ask(ask, range(19))) == [2 * i for i in range(19)]
    assert ask.sizes == [8, 8, 3]


@pytest.mark.parametrize(
    ("room", "sizes"), [(3, [8, 4, 2, 2, 2, 2, 2, 1]), (1, [8, 4, 2, *[1] * 11])]
)
def test_batches_are_halved_for_good_when_memory_runs_out(room, sizes):
    ask = Asked(room)
    with pytest.warns(UserWarning, match="out of GPU memory: going on with batches of"):
        assert list(Batches(8).ask(ask, range(11))) == [2 * i for i in range(11)]
    assert ask.sizes == sizes


def test_a_single_one_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(Batches(2).ask(Asked(0), range(3)))


@pytest.mark.parametrize("policy", ["baseline", "adaptive"])
def test_a_case_is_segmented_in_halves_as_in_whole(policy, tiny_model, monkeypatch):
    image = np.random.default_rng(0).integers(1, 256, SHAPE, np.uint8)
    objects = tuple(
        Prompts(Box((1, 2, 3), (5 + i, 9, 12)), (Click((4, 5 + i, 6), True),)) for i in range(5)
    )
    case = Case("case.npz", image, SPACING, objects, 2)
    expected = make_segmenter(tiny_model, policy, batch_size=1)(case)
    decode, sizes = tiny_model.decode, []

    def decode_two(embedding, *args, **kwargs):
        masks = kwargs["mask_prompt"]
        sizes.append(len(masks))
        if len(masks) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(embedding, *args, **kwargs)

    monkeypatch.setattr(tiny_model, "decode", decode_two)
    with pytest.warns(UserWarning, match="out of GPU memory"):
        seg = make_segmenter(tiny_model, policy, batch_size=4)(case)
    np.testing.assert_array_equal(seg, expected)
    assert max(sizes) == 4 and 2 in sizes and seg.any()


@pytest.mark.parametrize("policy", ["baseline", "adaptive"])
def test_what_did_not_fit_once_is_not_tried_again(policy, tiny_model, monkeypatch):
    """24 objects, two of which fit: eight at once are tried once, not three times."""
    image = np.random.default_rng(0).integers(1, 256, SHAPE, np.uint8)
    objects = tuple(Prompts(Box((1, 2, 3), (5, 9, 4 + i % 12))) for i in range(24))
    case = Case("case.npz", image, SPACING, objects, 1)
    decode, failures = tiny_model.decode, []

    def decode_two(embedding, *args, **kwargs):
        if len(kwargs["mask_prompt"]) > 2:
            failures.append(len(kwargs["mask_prompt"]))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(embedding, *args, **kwargs)

    monkeypatch.setattr(tiny_model, "decode", decode_two)
    segment = make_segmenter(tiny_model, policy, batch_size=8)
    with pytest.warns(UserWarning, match="out of GPU memory"):
        segment(case)
    assert failures == [8, 4]
    segment(case)
    assert failures == [8, 4]
