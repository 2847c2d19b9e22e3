"""The classical methods that the small network is compared with."""

import numpy as np
import pytest

from bench import classical
from segment_anything.prompts import Box, Click, Prompts
from utils.evaluation.metrics import dsc
from utils.formats.case import Case

SHAPE, SPACING = (14, 40, 50), (3.0, 1.0, 0.9)


def case_of(*clicks, has_box=True):
    """A bright ellipsoid and a darker one that touches it, in noise."""
    z, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]
    truth = ((z - 6) / 5) ** 2 + ((y - 18) / 11) ** 2 + ((x - 20) / 13) ** 2 <= 1
    other = ((z - 6) / 4) ** 2 + ((y - 20) / 8) ** 2 + ((x - 38) / 8) ** 2 <= 1
    image = np.random.default_rng(0).normal(60, 8, SHAPE) + 120 * truth + 50 * (other & ~truth)
    box = Box((1, 7, 7), (12, 30, 34)) if has_box else None
    image = image.clip(0, 255).astype(np.uint8)
    return Case("a.npz", image, SPACING, (Prompts(box, clicks), Prompts()), 1), truth


@pytest.mark.parametrize("method", classical.METHODS)
@pytest.mark.parametrize("has_box", [True, False])
def test_an_object_that_stands_out_is_found(method, has_box):
    clicks = () if has_box else (Click((6, 18, 20), True),)
    case, truth = case_of(*clicks, has_box=has_box)
    seg = classical.segment(case, method)
    assert seg.dtype == np.uint8 and set(np.unique(seg)) == {0, 1}
    assert dsc(truth, seg == 1) > (0.8 if has_box else 0.6)


@pytest.mark.parametrize("method", classical.METHODS)
def test_clicked_voxels_are_what_was_asked(method):
    case, _ = case_of(Click((6, 9, 20), False), Click((2, 8, 33), True))
    seg = classical.segment(case, method)
    assert seg[6, 9, 20] == 0 and seg[2, 8, 33] == 1


@pytest.mark.parametrize("method", classical.METHODS)
def test_objects_without_a_place_stay_empty(method):
    case, _ = case_of(Click((6, 9, 20), False), has_box=False)
    assert not classical.segment(case, method).any()
