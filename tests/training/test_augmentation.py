"""Augmentation: what stays, what changes together, and that it follows from its generator."""

import numpy as np
import pytest
import torch
import torchio as tio

from utils.training import augmentation
from utils.training.augmentation import INTENSITY, SPATIAL, change_intensities, deform

SIDE = 36


def blocks() -> tuple[torch.Tensor, np.ndarray]:
    """An image of 0..255 with an oblong block, and the block."""
    truth = np.zeros((SIDE,) * 3, bool)
    truth[12:24, 9:27, 14:22] = True
    noise = np.random.default_rng(0).integers(20, 60, truth.shape)
    image = torch.from_numpy(noise + 150 * truth).float()
    image[0] = 0  # beyond the volume
    return image, truth


@pytest.mark.parametrize("transform", INTENSITY.transforms, ids=lambda t: t.name)
@pytest.mark.parametrize("level", [None, 0.0, 100.0])
def test_an_intensity_transform_keeps_zeros_and_range(transform, level, monkeypatch):
    """On images that are all the same, too."""
    monkeypatch.setattr(augmentation, "INTENSITY", transform)
    monkeypatch.setattr(augmentation, "INVERTED", 0.0)
    monkeypatch.setattr(transform, "probability", 1)
    image, _ = blocks()
    if level is not None:
        image[:] = level
    changed = change_intensities(image, np.random.default_rng(1))
    assert changed.shape == image.shape and changed.isfinite().all()
    assert torch.equal(changed > 0, image > 0) and changed.abs().max() < 600
    assert level is not None or not torch.allclose(changed, image, atol=1)


def test_an_inverted_image_is_dark_where_it_was_bright(monkeypatch):
    monkeypatch.setattr(augmentation, "INTENSITY", tio.RandomGamma(p=0))
    monkeypatch.setattr(augmentation, "INVERTED", 1.0)
    image, _ = blocks()
    changed = change_intensities(image, np.random.default_rng(0))
    torch.testing.assert_close(changed[1:], 255 - image[1:])
    assert not changed[0].any()


@pytest.mark.parametrize("transform", SPATIAL.transforms_dict, ids=lambda t: t.name)
def test_image_and_truth_are_deformed_together(transform, monkeypatch):
    monkeypatch.setattr(augmentation, "SPATIAL", transform)
    image, truth = blocks()
    changed, mask = deform(image, truth, 2, np.random.default_rng(2))
    assert changed.shape == mask.shape == (SIDE - 4,) * 3 and mask.dtype == bool
    bright = changed.numpy() > 115
    assert 2 * (bright & mask).sum() / (bright.sum() + mask.sum()) > 0.9
    assert (mask != truth[2:-2, 2:-2, 2:-2]).any()


def test_what_moves_nothing_changes_nothing(monkeypatch):
    monkeypatch.setattr(augmentation, "SPATIAL", tio.RandomAffine(scales=0, degrees=0))
    image, truth = blocks()
    changed, mask = deform(image, truth, 0, np.random.default_rng(0))
    torch.testing.assert_close(changed, image)
    np.testing.assert_array_equal(mask, truth)


def test_what_is_drawn_follows_from_the_generator_and_leaves_torchs_alone():
    image, truth = blocks()
    torch.manual_seed(5)
    before, given = torch.get_rng_state(), image.clone()
    first, same, other = (
        (change_intensities(image, rng), *deform(image, truth, 1, rng))
        for rng in map(np.random.default_rng, (4, 4, 5))
    )
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(image, given)
    assert torch.equal(first[0], same[0]) and torch.equal(first[1], same[1])
    assert (first[2] == same[2]).all() and not torch.equal(first[1], other[1])
