"""The adaptive policy: where it looks, what it asks, what it makes of answers."""

import numpy as np
import pytest
import torch

from conftest import SHAPE, SPACING
from segment_anything.adaptive import (
    MAX_EXPANSIONS,
    Geometry,
    ObjectRequest,
    RoiAnswer,
    points_in,
    segment_objects,
)
from segment_anything.bounds import EXPANSION, AdaptiveSettings, choose_bounds, roi_of
from segment_anything.patches import Mask, Patch, assemble, render
from segment_anything.prompts import Box, Click, Drawing, Prompts
from segment_anything.roi import Roi, crop_roi, crop_roi_averaged, crop_roi_nearest, sample_linear

SETTINGS = AdaptiveSettings()
SIZE, MASK_SIZE = 32, 16
VOLUME = (60, 90, 120)  # (z, y, x)
THICK = (3.0, 1.0, 0.5)  # mm


def bounds_for(prompts, kept=None, shape=VOLUME, spacing=THICK, settings=SETTINGS):
    return choose_bounds(prompts, kept, SIZE, shape, spacing, settings)


def box_of(start, stop):
    return Box(start, stop)


BOX = box_of((20, 30, 40), (30, 50, 80))


def test_a_box_has_a_roi_of_the_factor_round_it():
    low, high = bounds_for(Prompts(BOX), settings=AdaptiveSettings(roi_factor=2.0))
    np.testing.assert_allclose(low, (15, 20, 20))
    np.testing.assert_allclose(high, (35, 60, 100))


def test_no_side_of_a_roi_has_less_than_8_voxels():
    low, high = bounds_for(Prompts(box_of((20, 30, 40), (21, 50, 44))))
    np.testing.assert_allclose(high - low, (8, 36, 8))
    np.testing.assert_allclose((high + low) / 2, (20.5, 40, 42))


def test_a_clipped_roi_ends_where_the_volume_does():
    """But along z it stays, where its voxels are finer than the volume's."""
    box, settings = box_of((50, 20, 10), (60, 44, 70)), AdaptiveSettings(2.0, clipped=True)
    shape = (60, 50, 120)
    low, high = bounds_for(Prompts(box), shape=shape, settings=settings)
    np.testing.assert_allclose(low, (45, 8, -120 / 16))
    np.testing.assert_allclose(high, (65, 53, 100))
    wide = bounds_for(Prompts(box), shape=shape, settings=AdaptiveSettings(2.0))
    assert (low >= wide[0]).all() and (high <= wide[1]).all()
    kept = np.array([[45, 0, 0], [60, 50, 120]], float)
    low, high = bounds_for(Prompts(box), kept, shape, settings=settings)
    assert (low < kept[0]).all() and (high > kept[1]).all()


def test_a_first_click_has_a_roi_of_the_spacing_round_it():
    settings = AdaptiveSettings(roi_spacing=1.25)
    low, high = bounds_for(Prompts(None, (Click((20, 40, 60), True),)), settings=settings)
    np.testing.assert_allclose((high - low) * THICK, 3 * [SIZE * 1.25])
    np.testing.assert_allclose((high + low) / 2, (20.5, 40.5, 60.5))


def test_a_first_click_in_a_small_volume_has_a_roi_of_its_size():
    low, high = bounds_for(Prompts(None, (Click((5, 6, 7), True),)), shape=SHAPE, spacing=SPACING)
    np.testing.assert_allclose(high - low, np.maximum(SHAPE, 8))


def test_nothing_to_look_for():
    assert bounds_for(Prompts()) is None
    assert bounds_for(Prompts(None, (Click((1, 2, 3), False),))) is None


def test_the_roi_stands_while_mask_and_clicks_are_inside():
    base = bounds_for(Prompts(BOX))
    clicks = (Click((22, 33, 44), True), Click((28, 52, 84), False))
    kept = np.array([[19, 29, 41], [31, 51, 79]], float)
    np.testing.assert_array_equal(bounds_for(Prompts(BOX, clicks), kept), base)


@pytest.mark.parametrize("is_foreground", [True, False])
def test_the_roi_is_expanded_to_a_click_outside(is_foreground):
    base = bounds_for(Prompts(BOX))
    click = Click((24, 40, 110), is_foreground)
    bounds = bounds_for(Prompts(BOX, (click,)))
    moved = bounds - base
    assert np.count_nonzero(moved) == 1
    steps = moved[1, 2] / (EXPANSION * (base[1, 2] - base[0, 2]))
    assert steps == pytest.approx(round(steps)) and bounds[1, 2] > 111


def test_without_a_box_the_roi_follows_the_mask_in_steps():
    prompts = Prompts(None, (Click((24, 40, 60), True),))
    kept = np.array([[20, 30, 40], [30, 50, 80]], float)
    low, high = bounds_for(prompts, kept)
    assert (low < kept[0]).all() and (high > kept[1]).all()
    assert ((high - low) <= 1.8 * 1.25 * (kept[1] - kept[0]) + 8).all()
    np.testing.assert_array_equal(bounds_for(prompts, kept + 0.4), [low, high])


def test_the_roi_covers_its_bounds_and_begins_at_a_voxel_of_the_mask():
    bounds = np.array([[-3.3, 20.7, 31.1], [40.2, 61.9, 117.3]])
    roi = roi_of(bounds, SIZE, 2, VOLUME)
    edges = np.outer([0, 1], np.array(roi.step) * SIZE) + np.array(roi.start) * roi.step
    assert (np.abs(edges - bounds) <= np.array(roi.step) + 1e-9).all()
    assert all(start % 2 == 0 for start in roi.start)


def test_points_lie_where_the_image_shows_them():
    """On volumes whose value is the coordinate, for each axis."""
    roi = roi_of(bounds_for(Prompts(BOX)), SIZE, 2, VOLUME)
    click = Click((24, 41, 67), False)
    points, labels = points_in(Prompts(BOX, (click,)), roi)
    np.testing.assert_array_equal(labels, [2, 3, 0])
    for axis in range(3):
        shape = [-1 if i == axis else 1 for i in range(3)]
        coordinate = np.broadcast_to(np.arange(VOLUME[axis]).reshape(shape), VOLUME)
        along = crop_roi(coordinate.astype(np.uint8), roi)
        row = along.movedim(axis, 0)[:, 16, 16].numpy()
        assert np.interp(points[2, axis], range(SIZE), row) == pytest.approx(click.point[axis])
        half = 0.5 / roi.step[axis] - 0.5  # corners are ROI voxels, whose edges are the box's
        first, last = points[0, axis] + half, points[1, axis] - half
        assert np.interp(first, range(SIZE), row) == pytest.approx(BOX.start[axis], abs=1e-4)
        assert np.interp(last, range(SIZE), row) == pytest.approx(BOX.stop[axis] - 1, abs=1e-4)


def test_clicks_outside_of_the_roi_are_not_in_its_prompts():
    roi = Roi(SIZE, (0, 0, 0), (1.0, 1.0, 1.0), VOLUME)
    clicks = tuple(Click(point, True) for point in ((31, 0, 0), (32, 0, 0), (5, 5, 40)))
    points, labels = points_in(Prompts(None, clicks), roi)
    np.testing.assert_array_equal(points, [[31, 0, 0]])
    np.testing.assert_array_equal(labels, [1])
    assert points_in(Prompts(), roi)[0].shape == (0, 3)


def test_wide_voxels_are_means():
    image = np.random.default_rng(0).integers(0, 256, VOLUME, np.uint8)
    roi = Roi(10, (1, 2, 3), (2.0, 3.0, 1.0), VOLUME)
    expected = image[2:22, 6:36, 3:13].reshape(10, 2, 10, 3, 10).mean(axis=(1, 3))
    np.testing.assert_allclose(crop_roi_averaged(image, roi), expected, atol=1e-4)
    fine = Roi(10, (1, 2, 3), (1.2, 0.3, 1.0), VOLUME)
    np.testing.assert_allclose(crop_roi_averaged(image, fine), crop_roi(image, fine), atol=1e-4)


def test_means_are_the_same_under_autocast_in_parts_and_with_gaps(monkeypatch):
    """A ROI beyond the volume, of voxels so wide that most of the original ones are left out."""
    image = np.random.default_rng(0).integers(0, 256, VOLUME, np.uint8)
    roi = Roi(4, (-1, -1, 0), (9.5, 13.0, 40.0), VOLUME)
    expected = np.zeros((4, 4, 4))
    for index in np.ndindex(4, 4, 4):
        first = np.array(index) + roi.start
        if (first < 0).any() or (first >= roi.resampled_shape).any():
            continue
        rows = [
            (3 * i + np.arange(3) + 0.5) * t / 3 - 0.5 for i, t in zip(first, roi.step, strict=True)
        ]
        expected[index] = sample_linear(image, rows).mean()
    whole = crop_roi_averaged(image, roi)
    np.testing.assert_allclose(whole, expected, atol=1e-4)
    monkeypatch.setattr("segment_anything.roi.CHUNK_VOXELS", 1)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(crop_roi_averaged(image, roi), whole, atol=1e-4)


def test_logits_come_back_to_where_they_were():
    """A linear function of the original coordinates is still that after the way there and back."""
    roi = roi_of(np.array([[10.0, 20, 30], [50, 80, 90]]), SIZE, 2, VOLUME).coarse(2)
    z, y, x = (roi.positions(axis)[0] for axis in range(3))
    function = (z[:, None, None] + 2 * y[:, None] - x).astype(np.float32)
    rows = [np.arange(20.0, 40), np.arange(30.0, 70), np.arange(40.0, 80)]
    expected = rows[0][:, None, None] + 2 * rows[1][:, None] - rows[2]
    np.testing.assert_allclose(render([Patch(roi, function)], rows), expected, atol=1e-3)


def test_a_refinement_crop_counts_in_its_middle_and_fades_towards_its_border():
    whole = roi_of(np.array([[10.0, 20, 30], [42, 52, 62]]), SIZE, 2, VOLUME).coarse(2)
    crop = roi_of(np.array([[18.0, 28, 38], [34, 44, 54]]), SIZE, 2, VOLUME).coarse(2)
    patches = [
        Patch(whole, np.full([MASK_SIZE] * 3, -1, np.float32)),
        Patch(crop, np.full([MASK_SIZE] * 3, 1, np.float32)),
    ]
    middle, row = np.array([26.0]), np.arange(10.0, 42)
    logits = render(patches, [row, middle + 10, middle + 20])[:, 0, 0]
    assert (logits[(row < 18) | (row >= 34)] == -1).all() and logits[16] == 1
    assert (np.diff(logits[:17]) >= 0).all() and (np.diff(logits[17:]) <= 0).all()
    prediction = assemble(patches, VOLUME, 0.5)
    assert prediction.mask.any() and not prediction.mask[:18].any()
    assert prediction.logits[0, 0, 0] == -np.inf and prediction.mask.shape == VOLUME
    np.testing.assert_array_equal(prediction.mask, prediction.logits > 0)


class Oracle:
    """Answers queries with the truth on their ROI, and notes them."""

    def __init__(self, truth, settings=SETTINGS):
        self.truth, self.queries, self.settings = truth.astype(np.uint8), [], settings

    def play(self, prompts, previous=None, spacing=THICK):
        shape = self.truth.shape
        request = ObjectRequest(prompts, previous)
        geometry = Geometry(shape, spacing, SIZE, MASK_SIZE)
        (prediction,) = segment_objects([request], self.ask, geometry, self.settings)
        return prediction

    def ask(self, queries):
        for query in queries:
            self.queries.append(query)
            yield RoiAnswer(self.answer(query), 0.5)

    def answer(self, query):
        return 8 * crop_roi(self.truth, query.roi.coarse(2)).numpy() - 4


def ellipsoid(centre, radii):
    z, y, x = np.ogrid[tuple(slice(n) for n in VOLUME)]
    (cz, cy, cx), (rz, ry, rx) = centre, radii
    return ((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_an_object_comes_back_as_the_network_saw_it():
    truth = ellipsoid((25, 40, 60), (5.4, 10.4, 20.4))
    oracle = Oracle(truth)
    prediction = oracle.play(Prompts(box_of((20, 30, 40), (31, 51, 81))))
    assert dice(prediction.mask, truth) > 0.97 and prediction.iou == 0.5
    (query,) = oracle.queries
    assert not query.mask.any()


def test_the_roi_is_expanded_while_the_mask_touches_its_border():
    """No object is cut: the box shows the middle of an object that reaches far beyond."""
    truth = ellipsoid((25, 45, 60), (20.4, 10.4, 55.4))
    small = box_of((10, 35, 45), (41, 56, 76))
    oracle = Oracle(truth)
    prediction = oracle.play(Prompts(small))
    assert len(oracle.queries) == 1 + MAX_EXPANSIONS
    assert dice(prediction.mask, truth) > 0.93
    again = Oracle(truth)
    whole = again.play(Prompts(small), prediction.kept)  # the next round sees what was found
    assert dice(whole.mask, truth) > 0.93 and len(again.queries) < len(oracle.queries)


def test_the_border_of_the_volume_is_no_reason_to_expand():
    truth = np.zeros(VOLUME, bool)
    truth[:, 20:50] = True
    oracle = Oracle(truth)
    oracle.play(Prompts(box_of((0, 20, 0), (60, 50, 120))))
    assert len(oracle.queries) == 1


def test_a_hole_that_the_whole_roi_does_not_show_is_found_in_a_refinement_crop():
    filled = ellipsoid((30, 45, 60), (20.4, 30.4, 50.4))
    truth = filled.copy()
    truth[28:33, 42:49, 57:64] = False

    class Blurred(Oracle):
        """Sees the hole from nearby alone."""

        def answer(self, query):
            self.truth = (filled if len(self.queries) == 1 else truth).astype(np.uint8)
            return super().answer(query)

    box = box_of((10, 15, 10), (51, 76, 111))
    before = Oracle(filled).play(Prompts(box))
    oracle = Blurred(truth)
    click = Click((30, 45, 60), False)
    fine = oracle.play(Prompts(box, (click,)), before.kept)
    near = slice(26, 35), slice(40, 51), slice(54, 67)
    errors = [np.count_nonzero((p.mask != truth)[near]) for p in (before, fine)]
    assert errors[1] < 0.8 * errors[0] and not fine.mask[click.point]
    whole, crop = oracle.queries
    assert crop.roi.step == tuple(s / 2 for s in whole.roi.step)
    assert dice(fine.mask, truth) >= dice(before.mask, truth)


def test_a_click_that_is_not_obeyed_is_asked_again_from_nearby():
    class Deaf(Oracle):
        def answer(self, query):
            return np.full([MASK_SIZE] * 3, 1.0 if len(self.queries) == 1 else -1.0, np.float32)

    inside = box_of((0, 0, 0), (10, 14, 18))
    oracle = Deaf(np.zeros(SHAPE, bool))
    prediction = oracle.play(Prompts(inside, (Click((4, 5, 6), False),)), spacing=SPACING)
    assert len(oracle.queries) == 2 and not prediction.mask[4, 5, 6]
    assert len(oracle.queries[1].points) == 3 and oracle.queries[1].mask.all()


@pytest.mark.parametrize(
    "settings, phases",
    [(SETTINGS, [3, 1, 1, 2, 1]), (AdaptiveSettings(second_look=True), [3, 3, 1, 1, 2, 1])],
)
def test_objects_are_asked_together_in_each_phase(settings, phases):
    """Whichever of their clicks is not obeyed, and whether their ROI is expanded."""
    truth = ellipsoid((30, 45, 60), (20.4, 30.4, 50.4))
    inside, outside = Click((30, 45, 60), True), Click((0, 0, 0), False)
    wrong = [Click((30, 45, 70), False), Click((30, 45, 50), False)]
    requests = [
        ObjectRequest(Prompts(box_of(start, stop), clicks))
        for start, stop, clicks in (
            ((10, 15, 10), (51, 76, 111), (wrong[0], inside)),
            ((25, 40, 50), (36, 51, 71), (inside, outside, *wrong)),
            ((10, 15, 10), (51, 76, 111), ()),
        )
    ]
    oracle, asked = Oracle(truth), []

    def ask(queries):
        asked.append(len(queries))
        return oracle.ask(queries)

    geometry = Geometry(VOLUME, THICK, SIZE, MASK_SIZE)
    together = segment_objects(requests, ask, geometry, settings)
    assert [n for n in asked if n] == phases
    for request, prediction in zip(requests, together, strict=True):
        (alone,) = segment_objects([request], oracle.ask, geometry, settings)
        np.testing.assert_array_equal(prediction.logits, alone.logits)


class Fixed(Oracle):
    """Answers with the same logits."""

    def __init__(self, logits, settings=SETTINGS):
        super().__init__(np.zeros(VOLUME), settings)
        self.logits = logits

    def answer(self, query):
        return self.logits


def test_what_lies_beyond_the_volume_is_not_found():
    logits = np.full([MASK_SIZE] * 3, -1, np.float32)
    logits[:2] = 1  # above the first slice
    oracle = Fixed(logits)
    prediction = oracle.play(Prompts(box_of((0, 30, 40), (10, 50, 80))))
    assert not prediction.mask.any() and prediction.mask.shape == VOLUME
    assert len(oracle.queries) == 1


def test_a_click_near_the_border_of_a_roi_is_obeyed():
    class Corrected(Oracle):
        def answer(self, query):
            value = -1.0 if len(self.queries) == 1 else 1.0
            return np.full([MASK_SIZE] * 3, value, np.float32)

    box = box_of((15, 20, 25), (45, 70, 100))
    for point in ((8, 45, 60), (8, 8, 8), (52, 82, 112)):
        oracle = Corrected(np.zeros(VOLUME))
        prediction = oracle.play(Prompts(box, (Click(point, True),)))
        assert prediction.mask[point]


def test_the_mask_before_is_the_mask_prompt():
    truth = ellipsoid((25, 40, 60), (5.4, 10.4, 20.4))
    z, y, x = slice(18, 33), slice(28, 53), slice(38, 83)
    oracle = Oracle(truth)
    oracle.play(Prompts(BOX), Mask((z, y, x), truth[z, y, x]))
    (query,) = oracle.queries
    np.testing.assert_array_equal(query.mask, crop_roi_nearest(truth, query.roi.coarse(2)))


LOOKS_AGAIN = AdaptiveSettings(second_look=True)


def test_a_second_look_has_the_first_answer_as_mask_prompt():
    truth = ellipsoid((25, 40, 60), (5.4, 10.4, 20.4))
    oracle = Oracle(truth, LOOKS_AGAIN)
    prediction = oracle.play(Prompts(BOX))
    first, second = oracle.queries
    assert first.roi == second.roi and not first.mask.any()
    np.testing.assert_array_equal(second.mask, oracle.answer(first) > 0)
    assert dice(prediction.mask, truth) > 0.97
    click = Click((25, 40, 60), True)
    oracle.play(Prompts(BOX, (click,)), prediction.kept)
    assert len(oracle.queries) == 3  # none where there is a mask


def test_the_second_look_at_a_click_is_on_a_roi_that_fits_what_was_found():
    small = ellipsoid((25, 40, 60), (2.4, 4.4, 9.4))
    oracle = Oracle(small, LOOKS_AGAIN)
    prediction = oracle.play(Prompts(None, (Click((25, 40, 60), True),)))
    first, second = oracle.queries
    assert (np.array(second.roi.step) < 0.8 * np.array(first.roi.step)).all()
    assert dice(prediction.mask, small) > 0.93


def test_there_is_no_second_look_where_something_is_drawn():
    settings = AdaptiveSettings(drawings=True, second_look=True)
    oracle = Oracle(ellipsoid((25, 40, 60), (5.4, 10.4, 20.4)), settings)
    drawing = Drawing((25, 30, 40), np.ones((1, 20, 40), bool), True, True)
    assert oracle.play(Prompts(drawings=(drawing,))).mask.any() and len(oracle.queries) == 1


def test_there_is_no_second_look_where_nothing_was_found():
    oracle = Fixed(np.full([MASK_SIZE] * 3, -1, np.float32), LOOKS_AGAIN)
    assert not oracle.play(Prompts(BOX)).mask.any() and len(oracle.queries) == 1


def test_without_anything_to_ask_the_mask_stays():
    truth = ellipsoid((25, 40, 60), (5.4, 10.4, 20.4))
    z, y, x = slice(0, 40), slice(28, 60), slice(38, 83)
    oracle = Oracle(truth)
    kept = Mask((z, y, x), np.zeros((40, 32, 45), bool))
    assert not oracle.play(Prompts(None, (Click((1, 2, 3), False),)), kept).mask.any()
    assert not oracle.play(Prompts()).mask.any() and not oracle.queries


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 3), (300, 3, 5)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (20.0, 1.0, 0.3)])
def test_odd_shapes(shape, spacing):
    corners = [(0, 0, 0), tuple(n - 1 for n in shape)]
    whole = Prompts(Box((0, 0, 0), shape))
    for prompts in (whole, *(Prompts(None, (Click(p, True),)) for p in corners)):
        prediction = Oracle(np.ones(shape, bool)).play(prompts, spacing=spacing)
        assert prediction.mask.shape == shape
        assert all(prediction.mask[click.point] for click in prompts.clicks)
    assert Oracle(np.ones(shape, bool)).play(whole, spacing=spacing).mask.all()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(roi_factor=0), "expected roi_factor as a number above 0, got 0"),
        (dict(roi_spacing="1.5"), "expected roi_spacing as a number above 0, got '1.5'"),
        (dict(second_look=1), "expected second_look as True or False, got 1"),
        (dict(normalisation="minmax"), "expected the normalisation zscore, got 'minmax'"),
    ],
)
def test_settings_that_cannot_be_obeyed(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveSettings(**options)
