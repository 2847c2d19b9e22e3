"""The challenge's protocol on one case: a round with boxes, then 5 that add a click per object."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy import ndimage

from segment_anything.prompts import Click, Region
from utils.evaluation.metrics import NSD_MIN_DSC, Spacing, dsc, nsd
from utils.evaluation.simulated_prompts import largest_error_click
from utils.formats.case import Case, LabelledCase

ROUNDS = 6  # the first with boxes alone; left out where there are none
SECONDS_PER_OBJECT = 90.0  # the challenge's limit, over all rounds
METRICS = ("DSC", "NSD_official", "NSD")  # the last axis of `Round.scores`


@dataclass(frozen=True)
class RoundInput:
    """What a method is given in one round.

    Attributes:
        case: The case with all prompts so far, and the prediction of the round before.
        click_rounds: The clicks of each round so far that had any, one per object, None where
            nothing was wrong.
        seconds: What is left of the case's time.
    """

    case: Case
    click_rounds: tuple[tuple[Click | None, ...], ...]
    seconds: float


@dataclass(frozen=True)
class RoundOutput:
    """What a method returns in one round.

    Attributes:
        seg: (D, H, W) uint8 labels, or None if it failed.
        seconds: Time that it took.
        failure: Why there is no prediction, or "".
    """

    seg: np.ndarray | None
    seconds: float
    failure: str = ""


RoundPredictor = Callable[[RoundInput], RoundOutput]


@dataclass(frozen=True)
class Round:
    """One round as it was played.

    Attributes:
        index: 0 with boxes alone, then 1..5.
        clicks: New in this round, one per object; empty in round 0.
        seconds: Time that the prediction took.
        scores: (objects, METRICS).
        failure: Why there is no prediction, or "".
    """

    index: int
    clicks: tuple[Click | None, ...]
    seconds: float
    scores: np.ndarray
    failure: str


def timed_predictor(segment: Callable[[Case], np.ndarray]) -> RoundPredictor:
    """Makes a predictor of a function of this process that returns (D, H, W) uint8 labels.

    What the function raises is the round's failure.
    """

    def predict_round(given: RoundInput) -> RoundOutput:
        start = time.perf_counter()
        try:
            seg = segment(given.case)
        except Exception as error:  # a failed prediction does not stop the evaluation
            failure = f"{type(error).__name__}: {error}"
            return RoundOutput(None, time.perf_counter() - start, failure)
        return RoundOutput(seg, time.perf_counter() - start)

    return predict_round


def play(
    labelled: LabelledCase,
    predict_round: RoundPredictor,
    seconds_per_object: float = SECONDS_PER_OBJECT,
    threads: int = 1,
) -> Iterator[tuple[Round, np.ndarray]]:
    """Play the official protocol (CVPR25_iter_eval.py, 2025-06-03) on a case.

    A prediction that fails, or comes when the case's time is over, counts as an empty one in its
    round; so it does officially, but where the file of an earlier round was left.

    Args:
        labelled: The case before the first round, and its truth.
        predict_round: The method. It is not asked any more when the case's time is over.
        seconds_per_object: The case's time, for all rounds together, divided by its objects.
        threads: Number that clicks and scores may use; the objects share them.

    Yields:
        Each round that is played, with its (D, H, W) uint8 labels; zeros if it failed.
    """
    case, truth = labelled.case, labelled.truth
    truth_regions = ndimage.find_objects(truth, max_label=len(case.objects))
    # The official evaluator applies the stored (x, y, z) spacing to (z, y, x) arrays.
    spacings = (case.spacing[::-1], case.spacing)
    limit = seconds_per_object * len(case.objects)
    used = 0.0
    clicks: tuple[Click | None, ...] = ()
    click_rounds: tuple[tuple[Click | None, ...], ...] = ()
    empty = np.zeros(case.shape, np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        compared = _Comparison(truth, truth_regions, empty, pool, threads)
        for index in range(ROUNDS):
            if index == 0 and case.rounds == 0:
                continue
            if index > 0:
                clicks = compared.clicks()
                click_rounds += (clicks,)
                case = _with_clicks(case, clicks, compared.seg)
            output = RoundOutput(None, 0.0)
            if used < limit:
                output = predict_round(RoundInput(case, click_rounds, limit - used))
                used += output.seconds
            failure = output.failure
            if used >= limit:
                failure = f"late: the limit for {len(case.objects)} objects is {limit:g} s"
            seg = empty if failure or output.seg is None else output.seg
            compared = _Comparison(truth, truth_regions, seg, pool, threads)
            scores = compared.scores(spacings)
            yield Round(index, clicks, output.seconds, scores, failure), seg


def _with_clicks(case: Case, clicks: tuple[Click | None, ...], prev_pred: np.ndarray) -> Case:
    """The case of the next round; an object without a click is right as it is."""
    objects = tuple(
        replace(prompts, is_right=True)
        if click is None
        else replace(prompts, clicks=(*prompts.clicks, click), is_right=False)
        for prompts, click in zip(case.objects, clicks, strict=True)
    )
    return replace(case, objects=objects, rounds=case.rounds + 1, prev_pred=prev_pred)


class _Comparison:
    """A segmentation beside the truth, each object on the region that holds both of its masks."""

    def __init__(
        self,
        truth: np.ndarray,
        truth_regions: list[Region],
        seg: np.ndarray,
        pool: ThreadPoolExecutor,
        threads: int,
    ) -> None:
        self.truth, self.seg, self.pool = truth, seg, pool
        self.labels = range(1, len(truth_regions) + 1)
        self.threads_per_object = max(1, threads // len(self.labels))
        found = ndimage.find_objects(seg, max_label=len(truth_regions))
        self.regions = [_union(a, b) for a, b in zip(truth_regions, found, strict=True)]

    def clicks(self) -> tuple[Click | None, ...]:
        """The next click on each object, None where it is right."""
        return tuple(self.pool.map(self._click, self.labels, self.regions))

    def scores(self, spacings: tuple[Spacing, Spacing]) -> np.ndarray:
        """(objects, METRICS), NSD with each of the spacings."""
        scores = np.zeros((len(self.labels), len(METRICS)))
        scores[:, 0] = list(self.pool.map(self._dsc, self.labels, self.regions))
        if scores[:, 0].mean() > NSD_MIN_DSC:
            distances = partial(self._nsd, spacings=spacings)
            scores[:, 1:] = list(self.pool.map(distances, self.labels, self.regions))
        return scores

    def _masks(self, label: int, region: Region) -> tuple[np.ndarray, np.ndarray]:
        return self.truth[region] == label, self.seg[region] == label

    def _click(self, label: int, region: Region) -> Click | None:
        made = largest_error_click(*self._masks(label, region), self.threads_per_object)
        if made is None:
            return None
        z, y, x = (i + part.start for i, part in zip(made.point, region, strict=True))
        return Click((z, y, x), made.is_foreground)

    def _dsc(self, label: int, region: Region) -> float:
        return dsc(*self._masks(label, region))

    def _nsd(self, label: int, region: Region, spacings: tuple[Spacing, Spacing]) -> list[float]:
        return nsd(*self._masks(label, region), spacings)


def _union(a: Region, b: Region | None) -> Region:
    if b is None:
        return a
    z, y, x = (slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return z, y, x
