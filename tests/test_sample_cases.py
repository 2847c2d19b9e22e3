"""The committed sample cases, and the rule of the challenge that their boxes follow."""

import numpy as np
import pytest

from conftest import ROOT
from data.make_sample_cases import SEED, region_around
from utils.evaluation.simulated_prompts import challenge_boxes
from utils.formats.case import Case, read_case
from utils.formats.intensity import scale_window
from utils.formats.npz import open_npz, read_objects

OBJECTS = {"MR_Brain_colin27.npz": 7, "CT_LungTumour_pyradiomics.npz": 1}
SPACINGS = {  # (z, y, x) in mm
    "MR_Brain_colin27.npz": (1.0, 1.0, 1.0),
    "CT_LungTumour_pyradiomics.npz": (5.0, 0.6269531, 0.6269531),
}
INPUTS, GTS = ROOT / "inputs", ROOT / "data" / "sample_gts"


def uneven_mask() -> np.ndarray:
    """(10, 14, 18): large in slices 2 and 3, small in 4, elsewhere in 7."""
    mask = np.zeros((10, 14, 18), bool)
    mask[2:4, 3:12, 2:16] = True
    mask[4, 6:9, 8:10] = True
    mask[7, 1, 3] = True
    return mask


def truth_of(name: str) -> np.ndarray:
    with np.load(GTS / name) as arrays:
        return arrays["gts"]


@pytest.fixture(params=OBJECTS)
def name(request) -> str:
    return request.param


@pytest.fixture
def case(name) -> Case:
    return read_case(INPUTS / name)


def test_margin_is_in_mm_and_stops_at_the_volume():
    spacing = (3.0, 1.0, 0.5)
    assert region_around(uneven_mask(), 0.5, spacing) == np.s_[1:9, 0:13, 1:17]
    assert region_around(uneven_mask(), 2.0, spacing) == np.s_[1:9, 0:14, 0:18]
    assert region_around(uneven_mask(), 3.5, spacing) == np.s_[0:10, 0:14, 0:18]


def test_scale_maps_the_window_to_0_255():
    hounsfield = np.array([-1000, -160, 40, 240, 3000])
    assert scale_window(hounsfield, level=40, width=400).tolist() == [0, 0, 128, 255, 255]


def test_committed_files_hold_the_keys_and_types_of_the_challenge(name):
    with np.load(INPUTS / name) as arrays, np.load(GTS / name) as truth:
        assert set(arrays.files) == {"imgs", "spacing", "boxes"}
        assert set(truth.files) == {"gts", "spacing"}
        assert arrays["imgs"].dtype == truth["gts"].dtype == np.uint8
        assert arrays["imgs"].shape == truth["gts"].shape and arrays["imgs"].ndim == 3
        assert arrays["imgs"].min() == 0 and arrays["imgs"].max() == 255
        assert arrays["spacing"].dtype == np.float64
        np.testing.assert_array_equal(arrays["spacing"], truth["spacing"])


def test_committed_spacing_is_read_as_z_y_x(name, case):
    assert case.spacing == pytest.approx(SPACINGS[name])


def test_committed_labels_run_from_1_to_the_number_of_boxes(name, case):
    assert len(case.objects) == OBJECTS[name]
    assert np.unique(truth_of(name)).tolist() == list(range(OBJECTS[name] + 1))


def test_committed_boxes_follow_from_the_truth(name):
    gts = truth_of(name)
    with open_npz(INPUTS / name) as archive:
        boxes = read_objects(archive, "boxes")
    assert boxes == challenge_boxes(gts, range(1, OBJECTS[name] + 1), SEED).tolist()


def test_committed_files_are_at_most_6_mb():
    assert (
        sum((folder / name).stat().st_size for folder in (INPUTS, GTS) for name in OBJECTS) <= 6e6
    )
