"""SamPredictor3D: an image once, then prompts, on a tiny network with random weights."""

import numpy as np
import pytest
import torch

from conftest import SHAPE, SPACING
from segment_anything import SamPredictor3D
from segment_anything.adaptive import ObjectRequest
from segment_anything.patches import Prediction
from segment_anything.predictor3D import MAX_STEPS, MAX_UNDO, Canvas, _Cache
from segment_anything.prompts import Box, Click, Drawing, Prompts
from segment_anything.roi import Roi
from utils.formats.case import Case
from utils.inference.method import make_segmenter

BOX = (2, 3, 4, 8, 11, 14)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(1, 256, SHAPE, np.uint8)


@pytest.fixture
def predictor(tiny_hybrid, image):
    predictor = SamPredictor3D(tiny_hybrid)
    predictor.set_image(image, SPACING)
    return predictor


@pytest.fixture
def encoded(predictor, monkeypatch):
    """The batch sizes of the encoder's calls."""
    sizes, encode = [], predictor.model.encode

    def count(images):
        sizes.append(len(images))
        return encode(images)

    monkeypatch.setattr(predictor.model, "encode", count)
    return sizes


@pytest.fixture
def contented(tiny_hybrid, monkeypatch):
    """As if the network always found a ball in the middle of the ROI that obeys each click."""
    along = torch.arange(32) - 15.5
    ball = 8 - (along[:, None, None] ** 2 + along[:, None] ** 2 + along**2).sqrt()

    def decode(embedding, points, mask_prompt, drawings):
        return ball.expand(len(points[0]), 1, -1, -1, -1), torch.ones(len(points[0]), 1)

    monkeypatch.setattr(tiny_hybrid, "decode", decode)
    monkeypatch.setattr("segment_anything.adaptive.is_obeyed", lambda *_: True)


def test_a_prediction_is_on_the_original_grid(predictor):
    prediction = predictor.predict(box=BOX)
    assert prediction.mask.shape == prediction.logits.shape == SHAPE
    assert prediction.mask.dtype == np.bool_ and prediction.mask.any()
    np.testing.assert_array_equal(prediction.mask, prediction.logits > 0)
    assert isinstance(prediction.iou, float)


def test_a_click_costs_no_encoder_pass_while_the_roi_stands(predictor, encoded, contented):
    first = predictor.predict(box=BOX)
    assert encoded == [1]
    inside = np.argwhere(first.mask)[0]
    predictor.predict(points=[inside], labels=[1])
    assert encoded == [1]
    predictor.predict(points=[(9, 13, 17)], labels=[0])  # outside of the ROI, which is expanded
    assert len(encoded) > 1


def test_what_is_encoded_ahead_costs_the_next_click_nothing(predictor, encoded, contented):
    first = predictor.predict(points=[(4, 5, 6)], labels=[1])
    prompts = predictor._objects[1][-1].prompts
    predictor.prepare(ObjectRequest(prompts, first.kept))
    passes = len(encoded)
    inside = np.argwhere(first.mask)[0]
    prepared = predictor.predict(points=[inside], labels=[1])
    assert len(encoded) == passes
    predictor.undo()
    predictor._cache.held.clear()
    again = predictor.predict(points=[inside], labels=[1])
    assert len(encoded) == passes + 1
    np.testing.assert_array_equal(prepared.logits, again.logits)


def test_what_is_encoded_ahead_of_another_image_is_not_used(predictor, image, monkeypatch):
    """The image changes while the embedding is computed."""
    first = predictor.predict(box=BOX)
    request = ObjectRequest(predictor._objects[1][-1].prompts, first.kept)
    predictor._cache.held.clear()
    encode = predictor.model.encode

    def slowly(crops):
        embedding = encode(crops)
        predictor.set_image(255 - image, SPACING)
        return embedding

    with monkeypatch.context() as patched:
        patched.setattr(predictor.model, "encode", slowly)
        predictor.prepare(request)
    assert not predictor._cache.held
    assert (predictor.predict(box=BOX).logits != first.logits).any()


def test_prompts_add_up_and_are_those_of_one_call(predictor):
    predictor.predict(box=BOX)
    predictor.predict(points=[(4, 5, 6)], labels=[1])
    step_by_step = predictor.predict(points=[(4, 9, 9)], labels=[0])
    predictor.undo()
    mask = predictor.predict().mask
    at_once = predictor.predict([(4, 5, 6), (4, 9, 9)], [1, 0], BOX, mask, obj=2)
    np.testing.assert_array_equal(step_by_step.logits, at_once.logits)


def test_a_point_given_again_counts_once_with_its_newest_label(predictor):
    predictor.predict(points=[(4, 5, 6), (4, 9, 9), (4, 5, 6)], labels=[1, 1, 0], box=BOX)
    assert predictor._objects[1][-1].prompts.clicks == (
        Click((4, 9, 9), True),
        Click((4, 5, 6), False),
    )


def test_undo_goes_back_a_call(predictor):
    first = predictor.predict(box=BOX)
    predictor.predict(points=[(4, 5, 6)], labels=[1])
    assert predictor.undo() is first and predictor.predict() is first
    assert predictor.undo() is None and predictor.objects == ()
    with pytest.raises(ValueError, match="object 1: nothing to undo"):
        predictor.undo()


def test_what_undo_holds_is_bounded_and_its_end_takes_nothing_away(predictor, contented):
    for i in range(MAX_UNDO + 3):
        predictor.predict(points=[(4, 5, i % 18)], labels=[i % 2], box=BOX)
    assert len(predictor._objects[1]) == MAX_UNDO + 1
    for _ in range(MAX_UNDO):
        assert predictor.undo() is not None
    with pytest.raises(ValueError, match="object 1: nothing to undo"):
        predictor.undo()
    assert predictor.objects == (1,) and predictor.predict().mask.any()


def test_a_click_after_nothing_was_found(predictor, monkeypatch):
    def decode(embedding, points, mask_prompt, drawings):
        return torch.full((1, 1, 32, 32, 32), -1.0), torch.ones(1, 1)

    monkeypatch.setattr(predictor.model, "decode", decode)
    assert not predictor.predict(box=BOX).mask.any()
    assert not predictor.predict(points=[(4, 5, 6)], labels=[1]).mask.any()


def test_a_mask_alone_stays_as_it_is(predictor):
    mask = np.zeros(SHAPE, bool)
    mask[3:5, 4:9, 5:12] = True
    np.testing.assert_array_equal(predictor.predict(mask=mask).mask, mask)


def test_objects_are_held_side_by_side(predictor):
    one = predictor.predict(box=BOX, obj=1)
    other = predictor.predict(points=[(5, 5, 5)], labels=[1], obj=7)
    assert predictor.objects == (1, 7)
    seg = predictor.segmentation()
    assert set(np.unique(seg)) <= {0, 1, 7}
    np.testing.assert_array_equal(seg > 0, one.mask | other.mask)
    wins = one.mask & (one.logits >= other.logits)
    np.testing.assert_array_equal(seg == 1, wins)
    predictor.reset(7)
    assert predictor.objects == (1,)
    np.testing.assert_array_equal(predictor.segmentation() == 1, one.mask)


def test_a_new_image_forgets_the_old_one(predictor, image):
    first = predictor.predict(box=BOX)
    predictor.set_image(255 - image, SPACING)
    assert predictor.objects == ()
    assert not np.array_equal(predictor.predict(box=BOX).logits, first.logits)


def test_a_volume_of_any_strides(predictor, image):
    expected = predictor.predict(box=BOX).logits
    for volume in (image[:, ::-1].copy()[:, ::-1], np.asfortranarray(image)):
        predictor.set_image(volume, SPACING)
        np.testing.assert_array_equal(predictor.predict(box=BOX).logits, expected)


def test_an_object_that_is_right_stays_as_it_is_whatever_others_claim(tiny_hybrid, image):
    prev_pred = np.zeros(SHAPE, np.uint8)
    prev_pred[3:6, 4:9, 5:12] = 1
    box = Box((2, 3, 4), (8, 11, 14))
    right = Prompts(box, (Click((4, 5, 6), True),), is_right=True)
    other = Prompts(box, (Click((4, 5, 6), True),))
    case = Case("case.npz", image, SPACING, (right, other), 2, prev_pred)
    seg = make_segmenter(tiny_hybrid, "adaptive")(case)
    np.testing.assert_array_equal(seg == 1, prev_pred == 1)
    assert (seg == 2).any()


def test_of_several_clicks_on_a_voxel_the_last_one_counts(tiny_hybrid, image):
    box = Box((2, 3, 4), (8, 11, 14))
    said = [Click((4, 5, 6), kind) for kind in (True, False)]
    both, last = (
        Case("case.npz", image, SPACING, (Prompts(box, clicks),), 3)
        for clicks in (
            (said[0], Click((5, 5, 7), True), said[1]),
            (Click((5, 5, 7), True), said[1]),
        )
    )
    assert both.objects[0].newest == last.objects[0]
    segment = make_segmenter(tiny_hybrid, "adaptive")
    np.testing.assert_array_equal(segment(both), segment(last))


def prediction_of(region, value):
    logits = np.full([part.stop - part.start for part in region], value, np.float16)
    return Prediction(SHAPE, region, logits, 0.5)


def test_an_overlap_goes_to_the_higher_logit_whatever_the_order():
    left = prediction_of((slice(0, 4), slice(0, 6), slice(0, 5)), 1.0)
    right = prediction_of((slice(0, 4), slice(0, 6), slice(3, 9)), 2.0)
    for order in ([(1, left), (2, right)], [(2, right), (1, left)]):
        canvas = Canvas(SHAPE)
        for label, prediction in order:
            canvas.paint(label, prediction)
        assert (canvas.seg[:4, :6, :3] == 1).all() and (canvas.seg[:4, :6, 3:9] == 2).all()
    canvas.paint(3, prediction_of((slice(0, 9), slice(0, 9), slice(0, 9)), -1.0))
    assert not (canvas.seg == 3).any()


@pytest.mark.parametrize("name", ["tiny_hybrid", "tiny_model"])
def test_a_case_is_the_same_in_any_batch_size_and_as_the_predictor_says(name, request, image):
    model = request.getfixturevalue(name)
    prev_pred = np.zeros(SHAPE, np.uint8)
    prev_pred[3:6, 4:9, 5:12], prev_pred[0:2, 9:14, 0:4] = 1, 3
    objects = (
        Prompts(Box((2, 3, 4), (8, 11, 14)), (Click((4, 5, 6), True),)),
        Prompts(None, (Click((7, 8, 9), True),)),
        Prompts(None, (Click((1, 2, 3), False),)),
        Prompts(),
    )
    case = Case("case.npz", image, SPACING, objects, 2, prev_pred)
    seg = make_segmenter(model, "adaptive", batch_size=1)(case)
    assert seg.dtype == np.uint8 and seg.shape == SHAPE and set(np.unique(seg)) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(seg, make_segmenter(model, "adaptive", batch_size=1)(case))
    together = make_segmenter(model, "adaptive", batch_size=4)(case)
    assert (seg == together).mean() > 0.999  # a batch rounds differently
    predictor = SamPredictor3D(model)
    predictor.set_image(image, SPACING)
    predictor.predict([(4, 5, 6)], [1], BOX, prev_pred == 1, obj=1)
    predictor.predict([(7, 8, 9)], [1], obj=2)
    predictor.predict([(1, 2, 3)], [0], mask=prev_pred == 3, obj=3)
    np.testing.assert_array_equal(predictor.segmentation(), seg)


def test_rounds_on_one_image_keep_its_embeddings(tiny_hybrid, image, contented, monkeypatch):
    calls, encode = [], tiny_hybrid.encode
    monkeypatch.setattr(tiny_hybrid, "encode", lambda x: calls.append(len(x)) or encode(x))
    segment = make_segmenter(tiny_hybrid, "adaptive")
    prompts = Prompts(Box((2, 3, 4), (8, 11, 14)))
    first = segment(Case("a.npz", image, SPACING, (prompts,), 1))
    z, y, x = np.argwhere(first)[0].tolist()
    clicked = Prompts(prompts.box, (Click((z, y, x), True),))
    segment(Case("a.npz", image, SPACING, (clicked,), 2, first))
    assert calls == [1]
    segment(Case("b.npz", image.copy(), SPACING, (prompts,), 1))
    assert calls == [1, 1]


def test_the_cache_of_embeddings_is_bounded_and_keeps_the_newest():
    cache = _Cache(limit=3 * 40)
    rois = [Roi(8, (i, 0, 0), (1.0, 1.0, 1.0), SHAPE) for i in range(5)]
    for roi in rois:
        cache.put(roi, torch.zeros(1, 10))
        cache.get(rois[0])
    assert list(cache.held) == [rois[3], rois[4], rois[0]] and cache.size == 120
    cache.put(rois[1], (torch.zeros(1, 50), torch.zeros(1, 50)))  # one is held, however large
    assert list(cache.held) == [rois[1]]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(points=[(1, 2)], labels=[1]), r"expected points \(N, 3\) and labels \(N,\)"),
        (dict(points=[(1, 2, 3)]), r"expected points \(N, 3\) and labels \(N,\)"),
        (dict(points=[(1, 2, 3)], labels=[2]), "expected labels 0 or 1"),
        (dict(points=[(1, 2, 18)], labels=[1]), r"expected voxels \(z, y, x\) of \(10, 14, 18\)"),
        (dict(points=[(1, 2.5, 3)], labels=[1]), "expected voxels"),
        (dict(points=[(np.nan, 2, 3)], labels=[1]), "expected voxels"),
        (dict(box=(0, 0, 0, 10, 14, 19)), "expected a box that is not empty, within"),
        (dict(box=(0, 5, 0, 10, 5, 10)), "expected a box that is not empty, within"),
        (dict(box=(0, 0, 0, 1)), "expected a box"),
        (dict(mask=np.zeros(SHAPE)), "expected a mask of bool"),
        (dict(box=BOX, obj=0), "expected an object from 1 to 255, got 0"),
    ],
)
def test_bad_prompts(options, message, predictor):
    with pytest.raises(ValueError, match=message):
        predictor.predict(**options)
    assert predictor.objects == ()


def test_bad_images(tiny_hybrid):
    predictor = SamPredictor3D(tiny_hybrid)
    with pytest.raises(ValueError, match="call set_image first"):
        predictor.predict(box=BOX)
    for volume in (np.zeros((3, 4), np.uint8), np.zeros((0, 4, 4), np.uint8), np.zeros(SHAPE)):
        with pytest.raises(ValueError, match="expected a volume"):
            predictor.set_image(volume)
    with pytest.raises(ValueError, match="expected a volume of finite values"):
        predictor.set_image(np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(ValueError, match="expected spacing as 3 positive numbers"):
        predictor.set_image(np.ones(SHAPE, np.uint8), (1.0, 0.0, 1.0))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_changes_few_voxels(precision, tiny_hybrid, predictor, image):
    exact = predictor.predict(box=BOX).mask
    low = SamPredictor3D(tiny_hybrid, precision=precision)
    low.set_image(image, SPACING)
    assert (low.predict(box=BOX).mask == exact).mean() > 0.9


CLICKS = tuple(Click((4, 5 + i, 6), i % 2 == 0) for i in range(4))


def test_steps_are_the_prompts_in_their_order():
    drawings = [Drawing((3, 4, 5), np.ones((1, 2, 3), bool), True, True, after) for after in (0, 2)]
    box = Box(BOX[:3], BOX[3:])
    steps = Prompts(box, CLICKS[:2], drawings=tuple(drawings)).steps(9)
    assert [(len(s.clicks), len(s.drawings)) for s in steps] == [
        (0, 0),
        (0, 1),
        (1, 1),
        (2, 1),
        (2, 2),
    ]
    assert all(step.box == box for step in steps) and Prompts().steps(9) == []


def test_a_replay_is_call_after_call(predictor):
    predictor.predict(box=BOX)
    for click in CLICKS:
        last = predictor.predict(points=[click.point], labels=[int(click.is_foreground)])
    other = predictor.predict(points=[(8, 9, 10)], labels=[1], obj=2)
    whole = Prompts(Box(BOX[:3], BOX[3:]), CLICKS)
    requests = [ObjectRequest(whole), ObjectRequest(Prompts(clicks=(Click((8, 9, 10), True),)))]
    for prediction, expected in zip(predictor.replay(requests), (last, other), strict=True):
        np.testing.assert_array_equal(prediction.logits, expected.logits)


def test_a_replay_of_very_many_prompts_takes_a_bounded_time(predictor, monkeypatch):
    calls, segment = [], predictor.segment
    monkeypatch.setattr(predictor, "segment", lambda asked: calls.append(asked) or segment(asked))
    clicks = tuple(Click((i // 13, i % 13, 6), True) for i in range(100))
    list(predictor.replay([ObjectRequest(Prompts(clicks=clicks))]))
    assert [len(asked[0].prompts.clicks) for asked in calls] == list(range(101 - MAX_STEPS, 101))


def test_prompts_without_a_mask_so_far_are_replayed(tiny_hybrid, image):
    objects = (Prompts(Box(BOX[:3], BOX[3:]), CLICKS),)
    segment = make_segmenter(tiny_hybrid, "adaptive")
    case = Case("a", image, SPACING, objects, 5, is_replayed=True)
    predictor = SamPredictor3D(tiny_hybrid)
    predictor.set_image(image, SPACING)
    (expected,) = predictor.replay([ObjectRequest(objects[0])])
    np.testing.assert_array_equal(segment(case), expected.mask)


def test_the_first_painted_may_keep_its_voxels():
    canvas = Canvas((2, 3, 4), "first")
    for label, logit in enumerate((1.0, 5.0), 1):
        logits = np.full((1, 3, 2), logit, np.float16)
        region = (slice(0, 1), slice(0, 3), slice(label, label + 2))
        canvas.paint(label, Prediction((2, 3, 4), region, logits, 1.0))
    np.testing.assert_array_equal(canvas.seg[0], [[0, 1, 1, 2]] * 3)
    assert not canvas.seg[1].any()
