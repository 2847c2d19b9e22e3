"""The evaluator's clicks: equal to the official ones, and on the edge cases."""

import csv
import zipfile

import numpy as np
import pytest
from scipy import ndimage

from conftest import SHAPE
from seeded import DATA
from segment_anything.prompts import Box, Click
from utils.evaluation import simulated_prompts as clicks
from utils.evaluation.metrics import NSD_MIN_DSC, auc, dsc, nsd
from utils.evaluation.simulated_prompts import (
    challenge_box,
    challenge_boxes,
    largest_error_click,
    middle_extent,
    pixels_of_shift,
)
from utils.formats import safe_pickle
from utils.formats.case import read_case
from utils.formats.stored_prompts import stored_box

CASES = ["eval_boxes", "eval_iso", "eval_no_boxes"]


def recorded(name: str):
    """Truth, predictions after each round, clicks (round, object), spacing as stored, CSV row."""
    with np.load(DATA / "evaluate" / f"{name}.npz") as file:
        truth, spacing = file["gts"], file["spacing"]
    path = DATA / "evaluate" / f"{name}.expected.npz"
    with np.load(path) as file:
        segs = file["all_segs"]
    made, orders = (read_objects(path, key) for key in ("clicks", "clicks_order"))
    rounds = [[] for _ in orders[0]]
    for points, order in zip(made, orders, strict=True):
        queues = {kind: iter(points[kind]) for kind in ("fg", "bg")}
        for made_in_round, kind in zip(rounds, order, strict=True):
            made_in_round.append(Click(tuple(next(queues[kind])), kind == "fg"))
    with open(DATA / "evaluate" / "expected_metrics.csv") as file:
        (row,) = (row for row in csv.DictReader(file) if row["CaseName"] == f"{name}.npz")
    return truth, segs, rounds, spacing, row


def read_objects(path, key: str) -> list:
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return safe_pickle.loads(file.read())


@pytest.mark.parametrize("name", CASES)
def test_clicks_equal_the_official_evaluator(name):
    truth, segs, rounds, _, _ = recorded(name)
    before = [np.zeros_like(truth)] * (len(rounds) + 1 - len(segs)) + list(segs)
    for seg, expected in zip(before, rounds, strict=False):
        for label, click in enumerate(expected, 1):
            assert largest_error_click(truth == label, seg == label) == click


@pytest.mark.parametrize("name", CASES)
def test_metrics_equal_the_official_evaluator(name):
    """Its NSD applies the stored (x, y, z) spacing to (z, y, x) arrays, so here, too."""
    truth, segs, rounds, spacing, row = recorded(name)
    labels = range(1, len(rounds[0]) + 1)
    first = 6 - len(segs)  # without boxes the first of the 6 rounds is left out
    curves = {"DSC": np.zeros(6), "NSD": np.zeros(6)}
    for i, seg in enumerate(segs, first):
        overlaps = [dsc(truth == label, seg == label) for label in labels]
        distances = [nsd(truth == label, seg == label, [tuple(spacing)])[0] for label in labels]
        assert np.mean(overlaps) > NSD_MIN_DSC
        curves["DSC"][i], curves["NSD"][i] = np.mean(overlaps), np.mean(distances)
    for metric, values in curves.items():
        official = [float(row[f"{metric}_{i}"]) for i in range(1, 7)]
        np.testing.assert_allclose(values, official, atol=1e-6, rtol=0)
        assert auc(values) == pytest.approx(float(row[f"{metric}_AUC"]), abs=1e-6)


def boxes(*regions) -> np.ndarray:
    mask = np.zeros((10, 14, 18), bool)
    for region in regions:
        mask[region] = True
    return mask


def test_no_error_no_click():
    mask = boxes(np.s_[2:5, 3:9, 4:8])
    assert largest_error_click(mask, mask) is None
    assert largest_error_click(mask & False, mask & False) is None


def test_click_is_in_the_middle_of_the_largest_error():
    truth = boxes(np.s_[2:7, 3:8, 4:9], np.s_[9, 13, 17])
    assert largest_error_click(truth, truth & False) == Click((4, 5, 6), True)
    pred = truth | boxes(np.s_[0:9, 0:3, 10:17])
    click = largest_error_click(truth, pred)
    assert not click.is_foreground and pred[click.point] and not truth[click.point]


def test_an_error_of_one_voxel_in_a_corner():
    truth = boxes(np.s_[9, 13, 17])
    assert largest_error_click(truth, truth & False) == Click((9, 13, 17), True)


def test_components_that_touch_at_a_corner_are_one():
    """8 + 27 voxels beat 30, which 27 alone would not."""
    truth = boxes(np.s_[0:2, 0:2, 0:2], np.s_[2:5, 2:5, 2:5], np.s_[0:2, 8:13, 14:17])
    assert largest_error_click(truth, truth & False).point == (3, 3, 3)


def official_click_on_a_large_region(shape: tuple[int, int, int]) -> np.ndarray:
    """In a filled box, whose distances are those of the box padded by a quarter and halved.

    They do not count the border of the padded region, which halving may reach.
    """
    margin = [max(int(0.25 * n), 1) for n in shape]
    padded = np.pad(
        np.ones(shape, np.uint8), [(m, m + n % 2) for m, n in zip(margin, shape, strict=True)]
    )
    d, h, w = (n // 2 for n in padded.shape)
    halved = padded.reshape(d, 2, h, 2, w, 2).max(axis=(1, 3, 5))
    depth = ndimage.distance_transform_edt(halved)
    depth = depth.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    depth = depth[tuple(slice(m, m + n) for m, n in zip(margin, shape, strict=True))]
    farthest = np.argwhere(depth == depth.max())
    np.random.seed(42)
    return farthest[np.random.choice(len(farthest))]


def test_a_region_larger_than_the_limit_is_halved_as_officially(monkeypatch):
    monkeypatch.setattr(clicks, "MAX_VOXELS", 100)
    truth = boxes(np.s_[1:8, 2:11, 3:14])
    expected = official_click_on_a_large_region((7, 9, 11)) + (1, 2, 3)
    assert largest_error_click(truth, truth & False) == Click(tuple(expected.tolist()), True)


@pytest.mark.slow
def test_a_region_above_60_million_voxels():
    shape = (260, 281, 300)  # 22 million, 74 with its margin
    expected = official_click_on_a_large_region(shape)
    truth = np.ones(shape, bool)
    assert largest_error_click(truth, truth & False) == Click(tuple(expected.tolist()), True)


def uneven_mask(height: int = 14, width: int = 18) -> np.ndarray:
    """(10, height, width): large in slices 2 and 3, small in 4, elsewhere in 7."""
    mask = np.zeros((10, height, width), bool)
    mask[2:4, 3:12, 2:16] = True
    mask[4, 6:9, 8:10] = True
    mask[7, 1, 3] = True
    return mask


def drawn_boxes(mask: np.ndarray) -> list[tuple[Box, int]]:
    return [challenge_box(mask, np.random.default_rng(i)) for i in range(100)]


def test_a_box_takes_z_from_the_object_and_y_x_from_the_middle_of_the_slices_that_hold_it():
    # 5 * 14 / 256 and 5 * 18 / 256 are below 1: no shift.
    assert drawn_boxes(uneven_mask()) == [(Box((2, 6, 8), (8, 9, 10)), 4)] * 100  # of 2, 3, 4, 7


def test_one_shift_moves_all_four_sides_as_far_as_the_slice_is_large():
    mask = np.zeros((4, 512, 256), bool)
    mask[1:3, 200:301, 100:121] = True
    moved = {
        (200 - box.start[1], box.stop[1] - 301, 100 - box.start[2], box.stop[2] - 121)
        for box, _ in drawn_boxes(mask)
    }
    assert moved == {(2 * shift, 2 * shift, shift, shift) for shift in range(6)}


def test_an_odd_slice_truncates_the_shift():
    mask = np.zeros((4, 190, 511), bool)
    mask[2, 90, 200] = True
    assert {(90 - box.start[1], 200 - box.start[2]) for box, _ in drawn_boxes(mask)} == {
        *((0, 0), (0, 1), (1, 3), (2, 5), (2, 7), (3, 9))
    }


def test_a_box_stays_in_the_slice():
    mask = np.ones((3, 600, 700), bool)
    assert drawn_boxes(mask) == [(Box((0, 0, 0), (3, 600, 700)), 1)] * 100


def test_a_part_of_the_volume_gives_the_extent_of_the_whole():
    mask = np.pad(uneven_mask(), ((2, 3), (200, 298), (300, 194)))
    part = mask[3:, 190:400, 250:400]
    assert middle_extent(part, (3, 190, 250)) == middle_extent(mask)


def test_the_shift_may_be_that_of_larger_slices():
    """And stays in the slice of the case."""
    extent = middle_extent(uneven_mask())
    moved = [pixels_of_shift(shift, (256, 512)) for shift in range(6)]
    boxes = [extent.box(by, (14, 18)) for by in moved]
    assert {6 - box.start[1] for box in boxes} == set(range(6))
    assert max(box.stop[2] for box in boxes) == 18 and min(box.start[2] for box in boxes) == 0


class Shift:
    """Draws what it is told to."""

    def __init__(self, value: int) -> None:
        self.value = value

    def integers(self, low: int, high: int, endpoint: bool) -> int:
        assert (low, high, endpoint) == (0, 5, True)
        return self.value


def test_a_published_case_has_boxes_of_this_rule(shared):
    """Slices of 551 x 669; each of its boxes has a shift of its own."""
    (path,) = (shared / "data" / "val" / "US" / "US_Cardiac").glob("*.npz")
    with np.load(path) as file:
        truth = file["gts"]
    shifts = []
    for label, stored in enumerate(read_objects(path, "boxes"), 1):
        made = [stored_box(*challenge_box(truth == label, Shift(i))) for i in range(6)]
        shifts.append(made.index(stored))
    assert shifts == [0, 5, 4]


def test_boxes_are_stored_as_they_are_read(write_npz):
    seg = np.zeros(SHAPE, np.uint8)
    seg[2:7, 3:9, 4:11], seg[0:3, 0:14, 12:18] = 3, 8
    stored = challenge_boxes(seg, (8, 3), seed=0)
    first, second = read_case(write_npz(boxes=stored)).objects
    assert first.box == Box((0, 0, 12), (3, 14, 18)) and second.box == Box((2, 3, 4), (7, 9, 11))
    assert stored[1]["z_mid"] == 4 and stored[0]["z_max"] == 2
