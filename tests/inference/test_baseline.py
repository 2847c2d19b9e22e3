"""The published method, decision for decision."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchio

from conftest import SHAPE, SPACING
from seeded import DATA
from segment_anything import Sam3D
from segment_anything.batches import Batches
from segment_anything.prompts import Box, Click, Prompts
from segment_anything.roi import crop_roi, normalise
from utils.formats.case import Case, read_case
from utils.inference.baseline import (
    baseline_prompt,
    baseline_queries,
    predict_baseline,
    predict_rois,
)

GOLDEN = sorted(p for p in (DATA / "infer").glob("*.npz") if ".expected" not in p.name)
# Boxes, clicks and a mask before; the others show no more of the network, in half a minute each.
WITH_NETWORK = "boxes_clicks_prev"


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def padding_and_cropping(roi) -> tuple[list[int], list[int]]:
    """As torchio.CropOrPad counts them: before and after, per axis."""
    padding, cropping = [], []
    for start, n in zip(roi.start, roi.resampled_shape, strict=True):
        stop = start + roi.size
        padding += [max(-start, 0), max(stop - n, 0)]
        cropping += [max(start, 0), max(n - stop, 0)]
    return padding, cropping


def read_golden(path: Path) -> tuple[Case, np.lib.npyio.NpzFile]:
    return read_case(path), np.load(path.with_name(f"{path.stem}.expected.npz"))


def check_queries(path: Path) -> None:
    """All decisions before the network's."""
    case, expected = read_golden(path)
    queries = list(baseline_queries(case, size=128, seed=0))
    recorded = sorted({key.split("/")[0] for key in expected.files if "/" in key})
    assert [f"obj{query.label}" for query in queries] == recorded
    for query in queries:
        key = f"obj{query.label}/"
        padding, cropping = padding_and_cropping(query.roi)
        assert query.roi.resampled_shape == tuple(expected[key + "resampled_shape"])
        assert padding == expected[key + "padding"].tolist()
        assert cropping == expected[key + "cropping"].tolist()
        assert query.point_roi == tuple(expected[key + "roi_click"])
        image = normalise(crop_roi(case.image, query.roi)).numpy()
        stride4 = expected[key + "roi_image_stride4"]
        np.testing.assert_allclose(image[::4, ::4, ::4], stride4, atol=1e-3, rtol=0)


def check_masks(path: Path, model: Sam3D, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the network finds in each ROI, and the labels that become of it."""
    case, expected = read_golden(path)
    found = {}

    def predict_and_note(model, case, queries, precision):
        masks = predict_rois(model, case, queries, precision)
        found.update(zip((query.label for query in queries), masks, strict=True))
        return masks

    monkeypatch.setattr("utils.inference.baseline.predict_rois", predict_and_note)
    segs = predict_baseline(model, case)
    assert sorted(f"obj{label}/roi_mask" for label in found) == sorted(
        key for key in expected.files if key.endswith("/roi_mask")
    )
    for label, mask in found.items():
        roi_mask = np.unpackbits(expected[f"obj{label}/roi_mask"]).reshape(mask.shape).astype(bool)
        assert dice(mask, roi_mask) >= 0.999
    for label in range(1, len(case.objects) + 1):
        assert dice(segs == label, expected["segs"] == label) >= 0.999


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_decision_before_the_network_equals_the_original(path):
    check_queries(path)


def test_every_decision_equals_the_original_at_fine_spacing(shared):
    check_queries(shared / "parity" / "infer" / "fine_spacing_large.npz")


# The recording had embeddings of zeros for a box's corners, which this policy does not use.
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if path.stem == WITH_NETWORK else pytest.mark.slow)
        for path in GOLDEN
    ],
    ids=lambda path: path.stem,
)
def test_masks_and_labels_equal_the_original(path, seeded_model, monkeypatch):
    check_masks(path, seeded_model, monkeypatch)


@pytest.mark.slow
def test_masks_and_labels_equal_the_original_at_fine_spacing(shared, seeded_model, monkeypatch):
    check_masks(shared / "parity" / "infer" / "fine_spacing_large.npz", seeded_model, monkeypatch)


BOX = Box((2, 3, 4), (7, 10, 11))
FG, BG = Click((1, 2, 3), True), Click((4, 5, 6), False)


@pytest.mark.parametrize(
    "prompts, expected",
    [
        (Prompts(), None),
        (Prompts(BOX), (4.0, 6.0, 7.0)),
        (Prompts(BOX, (FG,)), (1, 2, 3)),
        (Prompts(None, (FG, Click((9, 9, 9), True))), (9, 9, 9)),
        (Prompts(BOX, (BG, FG)), None),  # background clicks come last whenever they were made
        (Prompts(None, (BG,)), None),
    ],
)
def test_only_the_last_prompt_counts(prompts, expected):
    assert baseline_prompt(prompts) == expected


def make_case(*objects: Prompts, shape=SHAPE, spacing=SPACING, prev_pred=None) -> Case:
    image = np.random.default_rng(0).integers(1, 256, shape, np.uint8)
    return Case("case.npz", image, spacing, objects, 1, prev_pred)


def test_roi_equals_torchio_crop_or_pad():
    """On the cube round the prompt, for prompts all over an anisotropic volume."""
    rng = np.random.default_rng(0)
    shape, spacing = (20, 50, 70), (3.0, 1.5, 0.75)
    points = [tuple(int(v) for v in rng.integers(0, shape)) for _ in range(20)]
    case = make_case(
        *(Prompts(None, (Click(p, True),)) for p in points), shape=shape, spacing=spacing
    )
    for query, point in zip(baseline_queries(case, 32, seed=0), points, strict=True):
        cube = np.zeros(query.roi.resampled_shape, np.float32)
        z, y, x = (
            np.flatnonzero(np.abs(np.floor(query_positions) - p) <= 10)
            for query_positions, p in zip(nearest_voxels(query.roi), point, strict=True)
        )
        cube[np.ix_(z, y, x)] = 1
        subject = torchio.Subject(cube=torchio.LabelMap(tensor=torch.from_numpy(cube)[None]))
        crop = torchio.CropOrPad(32, mask_name="cube")
        padding, cropping = crop._compute_crop_or_pad(subject, (32, 32, 32))
        assert padding_and_cropping(query.roi) == (
            list(padding or [0] * 6),
            list(cropping or [0] * 6),
        )


def nearest_voxels(roi) -> list[np.ndarray]:
    """The nearest original voxel of each voxel of the resampled grid, per axis."""
    return [(np.arange(n) + 0.5) * t for n, t in zip(roi.resampled_shape, roi.step, strict=True)]


@pytest.mark.parametrize("thickness", [0.4, 5.0])
def test_an_axis_of_one_voxel_is_not_resampled(thickness):
    case = make_case(
        Prompts(None, (Click((0, 6, 7), True),)), shape=(1, 14, 18), spacing=(thickness, 1.5, 1.5)
    )
    (query,) = baseline_queries(case, 32, seed=0)
    z, (y, x) = query.point_roi[0], query.roi.start[1:]
    crop = crop_roi(case.image, query.roi)
    np.testing.assert_array_equal(crop[z, -y : 14 - y, -x : 18 - x], case.image[0])
    assert torch.count_nonzero(crop) == np.count_nonzero(case.image)


def test_the_drawn_point_lies_in_the_cube():
    case = make_case(Prompts(None, (Click((5, 6, 7), True),)), shape=(30, 40, 50))
    for seed in range(50):
        (query,) = baseline_queries(case, 32, seed)
        voxel = [
            (s + p + 0.5) * t
            for s, p, t in zip(query.roi.start, query.point_roi, query.roi.step, strict=True)
        ]
        assert all(0 <= p < 32 for p in query.point_roi)
        assert all(max(c - 10, 0) <= v < c + 11 for v, c in zip(voxel, (5, 6, 7), strict=True))


@pytest.mark.parametrize(
    "shape, spacing",
    [
        ((1, 1, 1), (1.0, 1.0, 1.0)),
        ((1, 40, 3), (5.0, 0.3, 20.0)),
        ((200, 3, 5), (0.01, 1.0, 2.0)),  # the cube is thinner than a voxel of the ROI
        ((6, 60, 60), (40.0, 8.0, 8.0)),  # the cube is larger than the ROI
    ],
)
def test_odd_shapes_and_spacings(shape, spacing, tiny_model):
    corners = [(0, 0, 0), tuple(n - 1 for n in shape)]
    prompts = [Prompts(None, (Click(p, True),)) for p in corners]
    seg = predict_baseline(tiny_model, make_case(*prompts, shape=shape, spacing=spacing))
    assert seg.shape == shape and seg.dtype == np.uint8


def test_without_a_usable_prompt_the_object_keeps_prev_pred(tiny_model):
    prev_pred = np.zeros(SHAPE, np.uint8)
    prev_pred[2:5, 3:6, 4:8], prev_pred[7:, :2, :2] = 1, 2
    case = make_case(Prompts(BOX, (BG,)), Prompts(), prev_pred=prev_pred)
    np.testing.assert_array_equal(predict_baseline(tiny_model, case), prev_pred)


def test_prev_pred_is_united_and_objects_are_painted_in_order(tiny_model):
    whole = np.full(SHAPE, 2, np.uint8)
    case = make_case(Prompts(BOX), Prompts(None, (BG,)), prev_pred=whole)
    np.testing.assert_array_equal(predict_baseline(tiny_model, case), whole)  # 2 is painted over 1
    case = make_case(Prompts(None, (BG,)), Prompts(BOX), prev_pred=np.ones(SHAPE, np.uint8))
    seg = predict_baseline(tiny_model, case)
    assert set(np.unique(seg)) == {1, 2}  # 2 over 1 where it is found, 1 elsewhere


def test_same_seed_same_output_for_any_batch_size(tiny_model):
    case = make_case(Prompts(BOX), Prompts(None, (FG,)), Prompts(Box((0, 0, 0), (3, 9, 9))))
    one_by_one = predict_baseline(tiny_model, case, seed=3, batches=Batches(1))
    np.testing.assert_array_equal(
        one_by_one, predict_baseline(tiny_model, case, seed=3, batches=Batches(3))
    )
    np.testing.assert_array_equal(one_by_one, predict_baseline(tiny_model, case, seed=3))
    assert one_by_one.any()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_changes_few_voxels(precision, tiny_model):
    case = make_case(Prompts(BOX), Prompts(None, (FG,)))
    exact = predict_baseline(tiny_model, case)
    assert (predict_baseline(tiny_model, case, precision=precision) == exact).mean() > 0.95
