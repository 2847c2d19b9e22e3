"""The evaluator's clicks: equal to the official ones, and on the edge cases."""

import csv

import numpy as np
import pytest

from seeded import DATA
from segment_anything.prompts import Click
from utils.evaluation import simulated_prompts as clicks
from utils.evaluation.metrics import NSD_MIN_DSC, auc, dsc, nsd
from utils.evaluation.simulated_prompts import largest_error_click
from utils.formats import safe_pickle

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
        for step, kind in zip(rounds, order, strict=True):
            step.append(Click(tuple(next(queues[kind])), kind == "fg"))
    with open(DATA / "evaluate" / "expected_metrics.csv") as file:
        (row,) = (row for row in csv.DictReader(file) if row["CaseName"] == f"{name}.npz")
    return truth, segs, rounds, spacing, row


def read_objects(path, key: str) -> list:
    import zipfile

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
    from scipy import ndimage

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
