"""Augmentation: what stays, what changes together, and that it follows from its generator."""

import numpy as np
import pytest
import torch

from utils.training import augmentation
from utils.training.augmentation import INTENSITY, artefacts, change_intensities, deform, spoil

SIDE = 36


def blocks() -> tuple[torch.Tensor, torch.Tensor]:
    """An image of 0..255 with an oblong block, and the block."""
    truth = torch.zeros(SIDE, SIDE, SIDE, dtype=torch.bool)
    truth[12:24, 9:27, 14:22] = True
    noise = torch.from_numpy(np.random.default_rng(0).integers(20, 60, truth.shape))
    image = (noise + 150 * truth).float()
    image[0] = 0  # beyond the volume
    return image, truth


@pytest.mark.parametrize("change", INTENSITY, ids=lambda change: change.__name__)
@pytest.mark.parametrize("level", [None, 0.0, 100.0])
def test_a_change_of_intensities_keeps_zeros_and_range(change, level, monkeypatch):
    """On images that are all the same, too."""
    monkeypatch.setattr(augmentation, "INTENSITY", {change: 1.0})
    monkeypatch.setattr(augmentation, "INVERTED", 0.0)
    image, _ = blocks()
    if level is not None:
        image[:] = level
    changed = change_intensities(image, np.random.default_rng(1))
    assert changed.shape == image.shape and changed.isfinite().all()
    assert torch.equal(changed > 0, image > 0) and changed.abs().max() < 600
    assert level is not None or not torch.allclose(changed, image, atol=1)


@pytest.mark.parametrize("transform", artefacts().transforms_dict, ids=lambda t: t.name)
def test_an_artefact_keeps_zeros_and_range_and_torchs_state(transform, monkeypatch):
    monkeypatch.setattr(augmentation, "artefacts", lambda: transform)
    image, _ = blocks()
    given, before = image.clone(), torch.get_rng_state()
    first, same, other = (spoil(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(image, given)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(first > 0, image > 0) and first.max() < 600
    assert not torch.allclose(first, image, atol=1)


def test_an_inverted_image_is_dark_where_it_was_bright(monkeypatch):
    monkeypatch.setattr(augmentation, "INTENSITY", {})
    monkeypatch.setattr(augmentation, "INVERTED", 1.0)
    image, _ = blocks()
    changed = change_intensities(image, np.random.default_rng(0))
    torch.testing.assert_close(changed[1:], 255 - image[1:])
    assert not changed[0].any()


@pytest.mark.parametrize("only", [("MAX_ANGLE", "MAX_SCALE"), ("MAX_BEND", "MAX_RIPPLE")])
def test_image_and_truth_are_deformed_together(only, monkeypatch):
    for name in {"MAX_ANGLE", "MAX_SCALE", "MAX_BEND", "MAX_RIPPLE"} - {*only}:
        monkeypatch.setattr(augmentation, name, 0.0)
    image, truth = blocks()
    changed, mask = deform(image, truth, 2, np.random.default_rng(2))
    assert changed.shape == mask.shape == (SIDE - 4,) * 3 and mask.dtype == torch.bool
    bright = changed > 115
    assert 2 * (bright & mask).sum() / (bright.sum() + mask.sum()) > 0.9
    assert (mask != truth[2:-2, 2:-2, 2:-2]).any()


def test_an_object_keeps_about_its_size_and_place():
    """Over many fields: between half and twice as large, its middle near the ROI's."""
    image, truth = blocks()
    sizes, middles = [], []
    for seed in range(40):
        _, mask = deform(image, truth, 2, np.random.default_rng(seed))
        sizes.append((mask.sum() / truth.sum()).item())
        middles.append((mask.nonzero().float().mean(dim=0) + 2).tolist())
    assert 0.5 < min(sizes) and max(sizes) < 2 and np.std(sizes) > 0.1
    distances = np.linalg.norm(np.array(middles) - [17.5, 17.5, 17.5], axis=1)
    assert np.median(distances) < 0.12 * SIDE and distances.max() < 0.3 * SIDE


def test_what_moves_nothing_changes_nothing(monkeypatch):
    for name in ("MAX_ANGLE", "MAX_SCALE", "MAX_BEND", "MAX_RIPPLE"):
        monkeypatch.setattr(augmentation, name, 0.0)
    image, truth = blocks()
    changed, mask = deform(image, truth, 0, np.random.default_rng(0))
    torch.testing.assert_close(changed, image, rtol=0, atol=1e-2)
    assert torch.equal(mask, truth)


def test_what_is_drawn_follows_from_the_generator_and_leaves_torchs_alone():
    image, truth = blocks()
    torch.manual_seed(5)
    before, given = torch.get_rng_state(), image.clone()
    first, same, other = (
        (change_intensities(image, rng), *deform(image, truth, 1, rng))
        for rng in map(np.random.default_rng, (4, 4, 5))
    )
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(image, given)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[1], other[1])
