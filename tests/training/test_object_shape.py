"""First prompts as people make them: boxes, scribbles and lassos in a slice of an object."""

import numpy as np
import torch
from scipy import ndimage

from utils.training.drawings import DRAWS, lasso, scribble
from utils.training.object_shape import ObjectShape, drawn_by_hand, first_drawing

SHAPE = (24, 60, 80)


def shape_of(seed: int = 0) -> ObjectShape:
    """An object of two parts, the larger one lumpy."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), 5)
    numbers, _ = ndimage.label(noise > noise.std())
    gts = (numbers == np.bincount(numbers[numbers > 0]).argmax()).astype(np.uint8) * 3
    gts[1, 2:4, 2:4] = 3
    inside = np.argwhere(gts == 3)
    bounds = np.array([inside.min(axis=0), inside.max(axis=0) + 1], float)
    return ObjectShape(gts, 3, bounds, 32)


def test_a_slice_part_is_the_largest_of_its_slice():
    shape = shape_of()
    for axis in range(3):
        for share in (0.0, 0.3, 0.6, 0.99):
            start, part = shape.slice_part(axis, share)
            plane = np.take(shape.gts, start[axis], axis=axis) == 3
            numbers, count = ndimage.label(plane)
            y, x = np.delete(start, axis)
            seen = plane[y : y + part.shape[0], x : x + part.shape[1]]
            assert part.sum() == np.bincount(numbers[plane]).max()
            assert (part <= seen).all() and part.any(axis=0).all() and part.any(axis=1).all()


def test_first_drawings_lie_on_the_object_in_one_slice():
    kinds, covered, axes = [], [], []
    for seed in range(150):
        shape = shape_of(seed % 5)
        drawing = first_drawing(shape, np.random.default_rng(seed))
        z, y, x = (
            slice(a, a + n) for a, n in zip(drawing.start, drawing.inside.shape, strict=True)
        )
        truth = shape.gts[z, y, x] == 3
        assert truth.shape == drawing.inside.shape and drawing.inside.any()
        (axis,) = [i for i in range(3) if drawing.inside.shape[i] == 1]
        share = (truth & drawing.inside).sum() / drawing.inside.sum()
        kinds.append((drawing.is_region, bool(drawing.inside.all())))
        covered.append(share)
        axes.append(axis)
        assert drawing.is_foreground and share > 0.3
    assert {is_region for is_region, _ in kinds} == {True, False}
    assert 40 < kinds.count((True, True)) < 80  # boxes
    scribbles = [
        share for (is_region, _), share in zip(kinds, covered, strict=True) if not is_region
    ]
    assert np.mean(scribbles) > 0.95
    assert 0.45 < np.mean(np.array(axes) == 0) < 0.75


def test_a_hand_draws_on_large_regions_as_on_small_ones():
    part = np.ones((30, 40), bool)
    part[:10, :20] = False
    for draw in (scribble, lasso):
        draws = torch.full((1, DRAWS), 0.4)
        low, drawn = drawn_by_hand(draw, part, draws)
        large_low, large = drawn_by_hand(draw, part.repeat(5, axis=0).repeat(5, axis=1), draws)
        assert (
            large_low == 4 * low
        ).all()  # a pixel of the canvas is 4, 200 being at most 56 of them
        assert 0.6 * 25 < large.sum() / drawn.sum() * 25 / 16 < 1.6 * 25
