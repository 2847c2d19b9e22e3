"""The official protocol on one case: equal to the recorded values, and on its edges."""

import csv
import threading
import time
from dataclasses import replace

import edt
import numpy as np
import pytest

from seeded import DATA
from segment_anything.prompts import Box, Click, Drawing, Prompts
from stand_in import stand_in
from utils.evaluation.metrics import auc
from utils.evaluation.protocol import RoundInput, RoundOutput, play, timed_predictor
from utils.evaluation.report.results import collect
from utils.formats.case import Case, LabelledCase, read_labelled_case

SHAPE = (10, 14, 18)
SPACING = (3.0, 1.0, 0.5)


def labelled(*regions, with_boxes: bool = True) -> LabelledCase:
    """A case of one object per region."""
    truth = np.zeros(SHAPE, np.uint8)
    objects = []
    for label, region in enumerate(regions, 1):
        truth[region] = label
        box = Box(tuple(s.start for s in region), tuple(s.stop for s in region))
        objects.append(Prompts(box if with_boxes else None))
    image = np.ones(SHAPE, np.uint8)
    case = Case("case.npz", image, SPACING, tuple(objects), int(with_boxes))
    return LabelledCase(case, truth, tuple(range(1, len(regions) + 1)))


A, B = np.s_[2:5, 3:9, 4:8], np.s_[6:9, 1:5, 9:17]


def played(case: LabelledCase, method, **options):
    """All rounds of a predictor, or of labels that are given for each."""
    if not isinstance(method, list):
        return list(play(case, method, **options))
    segs = iter(method)
    return list(play(case, lambda given: RoundOutput(next(segs), 0.0), **options))


def predict_stand_in(given: RoundInput) -> RoundOutput:
    newest = list(given.click_rounds[-1]) if given.click_rounds else []
    return RoundOutput(stand_in(given.case, newest), 0.0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["eval_boxes", "eval_iso", "eval_no_boxes"])
def test_rounds_equal_the_official_evaluator(name, threads):
    case = read_labelled_case(DATA / "evaluate" / f"{name}.npz")
    with np.load(DATA / "evaluate" / f"{name}.expected.npz") as file:
        expected_segs = file["all_segs"]
    with open(DATA / "evaluate" / "expected_metrics.csv") as file:
        (expected,) = (row for row in csv.DictReader(file) if row["CaseName"] == f"{name}.npz")

    rounds = list(play(case, predict_stand_in, threads=threads))
    np.testing.assert_array_equal([seg for _, seg in rounds], expected_segs)
    result = collect(f"{name}.npz", case, [round_ for round_, _ in rounds])
    for metric, key in (("DSC", "DSC"), ("NSD_official", "NSD")):
        curve = result.curve(metric)
        official = [float(expected[f"{key}_{i}"]) for i in range(1, 7)]
        np.testing.assert_allclose(curve, official, atol=1e-6, rtol=0)
        assert auc(curve) == pytest.approx(float(expected[f"{key}_AUC"]), abs=1e-6)


def test_perfect_predictions_get_no_clicks():
    case = labelled(A, B)
    rounds = played(case, [case.truth] * 6)
    assert [round_.clicks for round_, _ in rounds] == [()] + [(None, None)] * 5
    assert all((round_.scores == 1).all() for round_, _ in rounds)


def test_empty_predictions_score_nothing_and_get_foreground_clicks():
    case = labelled(A, with_boxes=False)
    rounds = played(case, [case.truth & 0] * 5)
    assert [round_.index for round_, _ in rounds] == [1, 2, 3, 4, 5]
    for round_, _ in rounds:
        assert (round_.scores == 0).all() and round_.clicks[0].is_foreground


def test_an_object_absent_from_the_prediction_scores_nothing_itself():
    case = labelled(A, B)
    first = np.where(case.truth == 1, case.truth, 0)
    (round_, _), (second, _), *_ = played(case, [first] * 6)
    np.testing.assert_array_equal(round_.scores, [[1, 1, 1], [0, 0, 0]])
    assert second.clicks[0] is None and case.truth[second.clicks[1].point] == 2


def test_an_object_of_one_voxel():
    case = labelled(np.s_[9:10, 13:14, 17:18])
    rounds = played(case, [case.truth & 0, *[case.truth] * 5])
    assert rounds[1][0].clicks == (Click((9, 13, 17), True),)
    assert (rounds[0][0].scores == 0).all() and (rounds[1][0].scores == 1).all()


@pytest.mark.parametrize(("outside", "is_scored"), [(8, False), (7, True)])
def test_nsd_is_zero_where_the_mean_dsc_is_just_at_its_threshold(outside, is_scored):
    """2 of 10 voxels found: 4 / (10 + 10) is 0.2, 4 / (10 + 9) is above."""
    case = labelled(np.s_[2:3, 3:4, 4:14])
    pred = np.zeros(SHAPE, np.uint8)
    pred[2, 3, 12:14] = 1
    pred[2, 8, :outside] = 1
    (round_, _), *_ = played(case, [pred] * 6)
    assert (round_.scores[0, 0] > 0.2) == is_scored
    assert (round_.scores[0, 1:] > 0).all() == is_scored


def test_the_mean_dsc_of_the_case_decides_about_nsd():
    case = labelled(A, B)
    pred = np.where(case.truth == 2, case.truth, 0)
    pred[2, 3, 4] = 1
    (round_, _), *_ = played(case, [pred] * 6)
    assert round_.scores[0, 0] < 0.2 and round_.scores[0, 1] > 0


def test_official_nsd_takes_the_stored_order_of_the_spacing():
    """Shifted along x by 3 voxels of 0.5 mm; the official one takes them for 3 mm each."""
    case = labelled(A)
    (round_, _), *_ = played(case, [np.roll(case.truth, 3, axis=2)] * 6)
    assert round_.scores[0, 2] == 1 and round_.scores[0, 1] < 1


def test_a_failed_prediction_counts_as_empty_and_the_next_round_goes_on():
    case = labelled(A)
    seen = []

    def segment(asked: Case) -> np.ndarray:
        seen.append(asked)
        if len(seen) == 2:
            raise RuntimeError("out of memory")
        return case.truth

    rounds = played(case, timed_predictor(segment))
    assert [round_.failure for round_, _ in rounds] == ["", "RuntimeError: out of memory"] + [
        ""
    ] * 4
    assert [round_.scores[0, 0] for round_, _ in rounds] == [1, 0, 1, 1, 1, 1]
    assert not rounds[1][1].any() and not seen[2].prev_pred.any()
    assert [len(asked.objects[0].clicks) for asked in seen] == [0, 0, 1, 1, 1, 1]
    assert [asked.rounds for asked in seen] == [1, 2, 3, 4, 5, 6]


def test_what_comes_late_counts_as_empty_and_is_not_asked_again():
    case = labelled(A, B)
    seconds_left = []

    def predict_round(given: RoundInput) -> RoundOutput:
        seconds_left.append(given.seconds)
        return RoundOutput(case.truth, 80.0)

    rounds = played(case, predict_round)
    assert seconds_left == [180, 100, 20]
    assert [round_.scores[:, 0].tolist() for round_, _ in rounds] == [[1, 1]] * 2 + [[0, 0]] * 4
    assert [round_.failure for round_, _ in rounds][2:] == [
        "late: the limit for 2 objects is 180 s"
    ] * 4
    assert [round_.seconds for round_, _ in rounds] == [80, 80, 80, 0, 0, 0]


@pytest.mark.parametrize(("threads", "each"), [(1, 1), (2, 1), (3, 1), (5, 2), (8, 4)])
def test_objects_share_the_threads(threads, each, monkeypatch):
    """No more work at once than there are threads: two objects, each in so many."""
    asked, running, transform, lock = [], [0, 0], edt.edtsq, threading.Lock()

    def edtsq(mask, parallel, **options):
        asked.append(parallel)
        with lock:
            running[:] = [running[0] + parallel, max(running[1], running[0] + parallel)]
        time.sleep(0.005)
        depth = transform(mask, parallel=parallel, **options)
        with lock:
            running[0] -= parallel
        return depth

    case = labelled(A, B)
    expected = [round_.clicks for round_, _ in played(case, [case.truth & 0] * 6)]
    monkeypatch.setattr(edt, "edtsq", edtsq)
    rounds = played(case, [case.truth & 0] * 6, threads=threads)
    assert [round_.clicks for round_, _ in rounds] == expected
    assert set(asked) == {each} and len(asked) == 2 * 5 and running[1] <= threads


def test_nsd_is_0_where_the_mean_dsc_of_the_case_is_low_though_an_object_is_right():
    truth = np.zeros((6, 10, 14), np.uint8)
    for label in range(1, 7):  # one of six is found: a mean DSC of 1 / 6
        truth[label - 1, 2:6, 3:9] = label
    image = np.full(truth.shape, 9, np.uint8)
    case = Case("case.npz", image, (3.0, 1.0, 0.5), (Prompts(Box((0, 2, 3), (6, 6, 9))),) * 6, 1)
    found = np.where(truth == 1, truth, 0)
    labelled = LabelledCase(case, truth, tuple(range(1, 7)))
    played, _ = next(play(labelled, timed_predictor(lambda _: found)))
    assert played.scores[:, 0].tolist() == [1, 0, 0, 0, 0, 0] and not played.scores[:, 1:].any()


def test_what_was_drawn_at_first_stays_when_clicks_follow():
    drawing = Drawing((2, 3, 4), np.ones((1, 3, 2), bool), True, True)
    case = labelled(A, B)
    objects = tuple(replace(p, drawings=(drawing,)) for p in case.case.objects)
    seen = []

    def predict(given):
        seen.append([(len(p.clicks), p.drawings) for p in given.case.objects])
        return RoundOutput(np.zeros(SHAPE, np.uint8), 0.0)

    list(play(replace(case, case=replace(case.case, objects=objects)), predict))
    assert seen == [[(i, (drawing,))] * 2 for i in range(6)]
