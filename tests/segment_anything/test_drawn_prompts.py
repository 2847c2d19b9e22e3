"""Scribbles, lassos and boxes in a slice: drawn where they are, looked at, or refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import SHAPE, SPACING, TINY_HYBRID
from segment_anything.adaptive import ObjectRequest, drawings_in
from segment_anything.bounds import AdaptiveSettings, choose_bounds
from segment_anything.modeling.hybrid3D import DRAWING_CHANNELS, PROMPT_CHANNELS
from segment_anything.predictor3D import SamPredictor3D
from segment_anything.prompts import Box, Click, Drawing, Prompts
from segment_anything.roi import Roi
from utils.inference.checkpoint import adaptive_settings, build_model, read_checkpoint

TAKES = AdaptiveSettings(drawings=True)
IMAGE = np.random.default_rng(0).integers(1, 256, SHAPE, np.uint8)


@pytest.fixture
def predictor(tiny_hybrid):
    predictor = SamPredictor3D(tiny_hybrid, TAKES)
    predictor.set_image(IMAGE, SPACING)
    return predictor


def in_slice(axis: int, at: int, is_region: bool = True, is_foreground: bool = True) -> Drawing:
    """An L in a slice, away from the volume's border by 2."""
    start = [2, 2, 2]
    start[axis] = at
    plane = np.zeros((5, 6), bool)
    plane[:, :2] = plane[3:] = True
    z, y, x = start
    return Drawing((z, y, x), np.expand_dims(plane, axis), is_region, is_foreground)


def brute_force(drawing: Drawing, roi: Roi) -> np.ndarray:
    """(S/2, S/2, S/2) bool, a voxel after the other."""
    half = roi.size // 2
    drawn = np.zeros([half] * 3, bool)
    for voxel in np.argwhere(drawing.inside) + drawing.start:
        ranges = []
        for i, step, first in zip(voxel, roi.step, roi.start, strict=True):
            low, high = (
                (first + 2 * np.arange(half)) * step,
                (first + 2 * np.arange(half) + 2) * step,
            )
            ranges.append((low < i + 1) & (high > i))
        drawn |= ranges[0][:, None, None] & ranges[1][:, None] & ranges[2]
    return drawn


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [(0.3, 0.5, 0.7), (1.0, 1.0, 1.0), (1.7, 2.3, 1.1)])
@pytest.mark.parametrize("start", [(0, 0, 0), (-3, 1, -5)])
def test_a_drawing_marks_all_that_it_touches(axis, step, start):
    roi = Roi(32, start, step, SHAPE)
    for at in (0, 3, SHAPE[axis] - 1):
        drawing = in_slice(axis, at)
        drawn = drawings_in(Prompts(drawings=(drawing,)), roi)
        assert drawn.shape == (DRAWING_CHANNELS, 16, 16, 16) and drawn.dtype == bool
        np.testing.assert_array_equal(drawn[2], brute_force(drawing, roi))
        assert not drawn[[0, 1, 3]].any()


def test_each_kind_and_sign_has_its_channel():
    roi = Roi(32, (0, 0, 0), (1.0, 1.0, 1.0), SHAPE)
    for channel, (is_region, is_foreground) in enumerate(
        [(False, True), (False, False), (True, True), (True, False)]
    ):
        drawing = in_slice(0, 4, is_region, is_foreground)
        drawn = drawings_in(Prompts(drawings=(drawing,)), roi)
        assert [bool(d.any()) for d in drawn] == [i == channel for i in range(4)]
    assert drawings_in(Prompts(Box((0, 0, 0), (2, 2, 2))), roi) is None


def test_drawings_reach_the_channels_of_their_kind(tiny_hybrid):
    encoder = tiny_hybrid.prompt_encoder
    drawn = torch.zeros(1, DRAWING_CHANNELS, 16, 16, 16)
    for channel in range(DRAWING_CHANNELS):
        drawn[0, channel, channel] = 1
    points = torch.tensor([[[20.0, 20, 20]]]), torch.tensor([[1]])
    _, dense = encoder(points, drawings=drawn)
    assert dense.shape == (1, PROMPT_CHANNELS, 16, 16, 16)
    assert dense[0, 0, 0].min() == 1 and dense[0, 0].max() == 1  # the click is there, too
    assert dense[0, 0, 10].max() > 0.8
    for i, channel in ((1, 1), (4, 2), (5, 3)):
        assert torch.equal(dense[0, i], drawn[0, channel])
    assert not dense[0, 2:4].any()


def test_a_drawing_changes_the_mask_and_none_changes_nothing(tiny_hybrid):
    embedding = tiny_hybrid.encode(torch.randn(1, 1, 32, 32, 32, generator=torch.manual_seed(0)))
    points = torch.tensor([[[20.0, 20, 20]]]), torch.tensor([[1]])
    drawn = torch.zeros(1, DRAWING_CHANNELS, 16, 16, 16)
    plain, _ = tiny_hybrid.decode(embedding, points)
    empty, _ = tiny_hybrid.decode(embedding, points, drawings=drawn)
    torch.testing.assert_close(empty, plain, rtol=1e-4, atol=1e-4)
    for channel in range(DRAWING_CHANNELS):
        one = drawn.clone()
        one[0, channel, 4:9, 4:9, 6] = 1
        changed, _ = tiny_hybrid.decode(embedding, points, drawings=one)
        assert (changed - plain).abs().max() > 1e-3


def test_a_file_from_before_drawings_sees_none_of_them(tiny_hybrid, tmp_path):
    weights = tiny_hybrid.state_dict()
    first = "mask_decoder.prompt_fine.weight"
    weights[first] = weights[first][:, :4].clone()
    content = {"model_state_dict": weights, "model_type": "hybrid_s", "model_args": TINY_HYBRID}
    torch.save(content | {"policy": "adaptive", "policy_args": {}}, tmp_path / "old.pth")
    checkpoint = read_checkpoint(tmp_path / "old.pth")
    model = build_model(checkpoint)
    weight = model.mask_decoder.prompt_fine.weight
    assert weight.shape[1] == PROMPT_CHANNELS and not weight[:, 4:].any() and weight[:, :4].any()
    assert not adaptive_settings(checkpoint).drawings


def test_prompts_of_every_kind_and_sign_segment_and_are_taken_back(predictor):
    scribble, lasso = np.zeros(SHAPE, np.int8), np.zeros(SHAPE, np.int8)
    scribble[5, 6, 4:12], scribble[5, 1, 2:9] = 1, -1
    lasso[2:8, 5:12, 9] = 1
    calls = [
        dict(box=(5, 3, 4, 6, 9, 12)),
        dict(scribble=scribble),
        dict(lasso=lasso),
        dict(lasso=((4, 2, 3), -np.ones((1, 3, 4), np.int8))),
        dict(box=(0, 0, 0, 3, 4, 5), box_label=0),
        dict(points=[(5, 6, 7)], labels=[1]),
    ]
    found = [predictor.predict(**call).logits for call in calls]
    for a, b in zip(found, found[1:], strict=False):
        assert (a != b).any()
    for expected in reversed(found[:-1]):
        np.testing.assert_array_equal(predictor.undo().logits, expected)
    assert predictor.undo() is None


def test_what_is_drawn_is_cut_to_its_part(predictor, monkeypatch):
    asked, segment = [], predictor.segment

    def record(requests):
        asked.append(requests)
        return segment(requests)

    monkeypatch.setattr(predictor, "segment", record)
    signs = np.zeros(SHAPE, np.int64)
    signs[5, 6, 4:12], signs[2, 3, 4] = 1, -1
    predictor.predict(scribble=signs)
    ((request,),) = asked
    inside, outside = request.prompts.drawings
    assert inside.start == (5, 6, 4) and inside.inside.shape == (1, 1, 8) and inside.is_foreground
    assert outside.start == (2, 3, 4) and outside.inside.all() and not outside.is_foreground
    part = predictor.predict(scribble=((5, 6, 4), np.ones((1, 1, 8), np.int8)), obj=2)
    again = predictor.predict(scribble=np.where(signs > 0, 1, 0), obj=3)
    np.testing.assert_array_equal(part.logits, again.logits)


def test_a_thin_box_is_the_objects_own_where_drawings_are_unknown(tiny_hybrid):
    predictor = SamPredictor3D(tiny_hybrid)
    predictor.set_image(IMAGE, SPACING)
    slice_box = predictor.predict(box=(5, 3, 4, 6, 9, 12))
    takes = SamPredictor3D(tiny_hybrid, TAKES)
    takes.set_image(IMAGE, SPACING)
    other = takes.predict(box=(5, 3, 4, 6, 9, 12))
    assert (slice_box.logits != other.logits).any()
    for call in (dict(scribble=np.ones(SHAPE, np.int8)), dict(box=(0, 0, 0, 2, 2, 2), box_label=0)):
        with pytest.raises(ValueError, match="expected a network that was trained with scribbles"):
            predictor.predict(**call)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(scribble=np.ones(SHAPE)), r"a scribble of integers \(z, y, x\), got float64"),
        (
            dict(lasso=np.ones((3, 3), np.int8)),
            r"a lasso of integers \(z, y, x\), got int8 \(3, 3\)",
        ),
        (dict(lasso=np.zeros(SHAPE, np.int8)), "a lasso of -1, 0 and 1, not all 0"),
        (dict(scribble=np.full(SHAPE, 2, np.int8)), "a scribble of -1, 0 and 1"),
        (
            dict(scribble=((5, 6, 15), np.ones((1, 1, 8), np.int8))),
            r"a scribble within .*\(5, 6, 15",
        ),
        (dict(box=(0, 0, 0, 1, 2, 3), box_label=2), "a box_label of 0 or 1, got 2"),
    ],
)
def test_malformed_drawings_are_named(predictor, call, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(**call)
    assert predictor.objects == ()


def test_objects_with_and_without_drawings_go_together(tiny_hybrid):
    one, many = (SamPredictor3D(tiny_hybrid, TAKES, batch_size=size) for size in (1, 3))
    found = []
    for predictor in (one, many):
        predictor.set_image(IMAGE, SPACING)
        drawn = Prompts(drawings=(in_slice(0, 4),))
        boxed = Prompts(Box((2, 3, 4), (7, 9, 11)))
        clicked = Prompts(None, (Click((5, 6, 7), True),), drawings=(in_slice(1, 6, False),))
        requests = [ObjectRequest(prompts) for prompts in (drawn, boxed, clicked)]
        found.append(list(predictor.segment(requests)))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=2e-2)


def bounds_of_prompts(*drawings, box=None, clicks=(), kept=None, spacing=SPACING):
    prompts = Prompts(box, clicks, drawings=drawings)
    return choose_bounds(prompts, kept, 32, (200, 300, 400), spacing, TAKES)


def drawing(shape, start=(100, 150, 200), is_region=True, is_foreground=True) -> Drawing:
    return Drawing(start, np.ones(shape, bool), is_region, is_foreground)


def test_a_slice_is_looked_at_as_deep_as_its_shorter_side():
    """In mm: 20 x 1 mm by 80 x 0.5 mm are 20 mm deep, of 3 mm each."""
    low, high = bounds_of_prompts(drawing((1, 20, 80)))
    np.testing.assert_allclose(high - low, np.array([20 / 3, 20, 80]) * TAKES.roi_factor)
    np.testing.assert_allclose((low + high) / 2, [100.5, 160, 240])
    low, high = bounds_of_prompts(drawing((30, 40, 1)))  # 90 mm by 40 mm
    np.testing.assert_allclose(high - low, np.array([30, 40, 40 / 0.5]) * TAKES.roi_factor)


def test_a_line_is_looked_at_no_closer_than_a_click():
    low, high = bounds_of_prompts(drawing((1, 1, 10), is_region=False))
    clicked = np.minimum(32 * TAKES.roi_spacing / np.array(SPACING), (200, 300, 400))
    assert (high - low >= clicked / 3 - 1e-6).all()


def test_all_drawings_are_seen():
    far = drawing((1, 9, 9), (100, 200, 300), is_foreground=False)
    low, high = bounds_of_prompts(drawing((1, 20, 80)), far)
    assert (low <= [100, 200, 300]).all() and (high >= [101, 209, 309]).all()
    assert bounds_of_prompts(far) is None  # says where the object is not
    box = Box((90, 140, 190), (110, 160, 210))
    low, high = bounds_of_prompts(drawing((1, 20, 80)), box=box)
    assert high[2] >= 280


def test_settings_say_whether_drawings_are_known():
    assert not AdaptiveSettings().drawings
    assert replace(TAKES, roi_factor=2.0).drawings
    with pytest.raises(ValueError, match="drawings as True or False, got 1"):
        AdaptiveSettings(drawings=1)
