"""The adaptive policy: what is asked of the network about objects, phase after phase.

`segment_objects` is the method. It knows no network and no file: what answers it is an argument.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from segment_anything.bounds import (
    EXPANSION,
    AdaptiveSettings,
    choose_bounds,
    refinement_bounds,
    roi_of,
)
from segment_anything.modeling.hybrid3D import DRAWING_CHANNELS
from segment_anything.modeling.sam3D import MASK_THRESHOLD
from segment_anything.patches import (
    KEPT_LOGIT,
    Mask,
    Patch,
    Prediction,
    assemble,
    found_bounds,
    is_obeyed,
    render,
    touched,
    unchanged,
)
from segment_anything.prompts import Click, Index3, Prompts
from segment_anything.roi import Roi

MAX_EXPANSIONS = 2  # of a ROI whose border the mask touches
RIGHT_LOGIT = 100.0  # for a mask known to be right, whatever other objects claim


@dataclass(frozen=True)
class ObjectRequest:
    """An object to segment.

    Attributes:
        prompts: In voxels of the original volume, those of earlier rounds included.
        previous: The mask before the newest prompts, if there is one.
    """

    prompts: Prompts
    previous: Mask | None = None


@dataclass(frozen=True)
class RoiQuery:
    """What the network is asked about a ROI.

    Attributes:
        roi: The part of the volume that it sees.
        points: (N, 3) float32, (z, y, x) in voxels of the ROI.
        labels: (N,) int64, as PromptEncoder3D.forward takes them.
        mask: (M, M, M) bool, the mask prompt, as fine as the network's masks.
        drawings: As `drawings_in` returns them.
    """

    roi: Roi
    points: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    drawings: np.ndarray | None = None


@dataclass(frozen=True)
class RoiAnswer:
    """(M, M, M) float32 logits, and their predicted IoU."""

    logits: np.ndarray
    iou: float


def points_in(prompts: Prompts, roi: Roi) -> tuple[np.ndarray, np.ndarray]:
    """The prompts that touch a ROI, in its voxels -> points (N, 3) float32, labels (N,) int64.

    Lower and upper corner of the box (labels 2 and 3), as the ROI's voxels inside it; then the
    clicks in the order in which they were made.
    """
    step, start = np.array(roi.step), np.array(roi.start)
    points: list[np.ndarray] = []
    labels: list[int] = []
    if prompts.box is not None:
        points += [prompts.box.start / step - start, prompts.box.stop / step - start - 1]
        labels += [2, 3]
    for click in prompts.clicks:
        point = (np.array(click.point) + 0.5) / step - 0.5 - start
        if ((-0.5 <= point) & (point <= roi.size - 0.5)).all():
            points.append(point)
            labels.append(int(click.is_foreground))
    return np.array(points, np.float32).reshape(-1, 3), np.array(labels, np.int64)


def drawings_in(prompts: Prompts, roi: Roi) -> np.ndarray | None:
    """The drawings on a ROI -> (DRAWING_CHANNELS, S/2, S/2, S/2) bool, None where there are none.

    A voxel of theirs marks all that it touches, so that a slice is whole however thin it is.
    """
    if not prompts.drawings:
        return None
    half = roi.size // 2
    drawn = np.zeros((DRAWING_CHANNELS, half, half, half), bool)
    for drawing in prompts.drawings:
        volume = drawing.inside.astype(np.float32)
        for axis, (step, first) in enumerate(zip(roi.step, roi.start, strict=True)):
            edges = (first + 2 * np.arange(half + 1)) * step
            voxels = drawing.start[axis] + np.arange(drawing.inside.shape[axis])
            touches = (edges[:-1, None] < voxels + 1) & (edges[1:, None] > voxels)
            # The next axis comes first; after three all are in their order.
            volume = np.tensordot(volume, touches.astype(np.float32), (0, 1))
        drawn[2 * drawing.is_region + (not drawing.is_foreground)] |= volume > 0
    return drawn


@dataclass(frozen=True)
class Geometry:
    """The volume's grid, and how many voxels the network sees and answers.

    Attributes:
        shape: (D, H, W) of the volume.
        spacing: (z, y, x) in mm.
        size: Voxels along the side of the ROI.
        mask_size: Voxels along the side of the network's masks; divides `size`.
    """

    shape: Index3
    spacing: tuple[float, float, float]
    size: int
    mask_size: int

    def bounds(
        self, prompts: Prompts, kept: np.ndarray | None, settings: AdaptiveSettings
    ) -> np.ndarray | None:
        """As `choose_bounds`."""
        return choose_bounds(prompts, kept, self.size, self.shape, self.spacing, settings)

    def roi(self, bounds: np.ndarray) -> Roi:
        return roi_of(bounds, self.size, self.size // self.mask_size, self.shape)

    def mask_roi(self, roi: Roi) -> Roi:
        """The same cube in voxels of the network's masks."""
        return roi.coarse(self.size // self.mask_size)


def mask_of(patches: Sequence[Patch], roi: Roi) -> np.ndarray:
    """What was found, on the voxels of a ROI."""
    return render(patches, [roi.positions(axis)[0] for axis in range(3)]) > MASK_THRESHOLD


def query_of(prompts: Prompts, roi: Roi, mask: np.ndarray) -> RoiQuery:
    """What the network is asked: all prompts that touch a ROI, and an (M, M, M) bool mask."""
    return RoiQuery(roi, *points_in(prompts, roi), mask, drawings_in(prompts, roi))


@dataclass
class Search:
    """An object while it is looked for.

    Attributes:
        prompts: Of several clicks on a voxel, the newest alone.
        previous: The mask before them; None where there is none, or an empty one.
        bounds: (2, 3) edges of the ROI in voxels of the volume.
        step: (3,) voxels by which an expansion moves a side of the ROI outwards.
        unchecked: The clicks that may turn out not to be obeyed.
        seen: The answer that a second look has as mask prompt, if there is one.
        patches: The answer for the whole object, then those on refinement crops.
        iou: As the network estimates it for the whole object.
    """

    prompts: Prompts
    previous: Mask | None
    bounds: np.ndarray
    step: np.ndarray
    unchecked: Iterator[Click]
    seen: list[Patch] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    iou: float = 0.0

    def whole_query(self, geometry: Geometry) -> RoiQuery:
        """The object on its ROI, with the first answer or the mask before as mask prompt."""
        roi = geometry.roi(self.bounds)
        mask = np.zeros([geometry.mask_size] * 3, bool)
        if self.seen:
            mask = mask_of(self.seen, geometry.mask_roi(roi))
        elif self.previous is not None:
            mask = self.previous.crop(geometry.mask_roi(roi))
        return query_of(self.prompts, roi, mask)

    def refinement_query(self, click: Click, geometry: Geometry) -> RoiQuery:
        """A refinement crop round a click, with what was found so far as mask prompt."""
        roi = geometry.roi(refinement_bounds(self.bounds, click.point))
        return query_of(self.prompts, roi, mask_of(self.patches, geometry.mask_roi(roi)))

    def look_again(self, geometry: Geometry, settings: AdaptiveSettings) -> bool:
        """Go on from the first answer: after clicks alone on a ROI that fits it, else on the same.

        Returns:
            False if there is nothing to look at again: there was a mask before, or nothing was
            found; or something is drawn, since who draws waits for the answer.
        """
        found = found_bounds(self.patches[0])
        if self.previous is not None or self.prompts.drawings or found is None:
            return False
        if self.prompts.box is None:
            found = found.clip(0, geometry.shape)
            bounds = geometry.bounds(self.prompts, found, settings)
            assert bounds is not None  # since there is a mask
            self.bounds, self.step = bounds, step_of(bounds)
        self.seen = self.patches
        return True

    @property
    def cut_faces(self) -> np.ndarray:
        """(2, 3) bool: the faces of the ROI at which it cuts the mask."""
        return touched(self.patches[0])

    def expand(self) -> None:
        """Move them outwards."""
        self.bounds = self.bounds + self.cut_faces * [[-1.0], [1.0]] * self.step

    def next_disobeyed(self) -> Click | None:
        """The next click that is not obeyed by what was found so far, None after the last one."""
        return next((c for c in self.unchecked if not is_obeyed(c, self.patches)), None)


Ask = Callable[[Sequence[RoiQuery]], Iterable[RoiAnswer]]  # answers in the order of the queries


def segment_objects(
    requests: Sequence[ObjectRequest], ask: Ask, geometry: Geometry, settings: AdaptiveSettings
) -> list[Prediction]:
    """Segment objects together, by asking the network.

    First each object as a whole on one ROI; where there is no mask before, and if so trained, once
    more with what was found as mask prompt; then on a larger one while its mask touches the border;
    then on a refinement crop round each click that was not obeyed, one after the other, since the
    mask prompt of a crop is what the crops before it found.

    Args:
        requests: The objects.
        ask: Answers the queries of several objects together.
        geometry: The volume's grid and the network's sizes.
        settings: Those that the network was trained with.
    """
    searches = [begin_search(request, geometry, settings) for request in requests]
    asked = [search for search in searches if search is not None]

    ask_for_whole(asked, ask, geometry)
    if settings.second_look:
        again = [search for search in asked if search.look_again(geometry, settings)]
        ask_for_whole(again, ask, geometry)
    for _ in range(MAX_EXPANSIONS):
        cut = [search for search in asked if search.cut_faces.any()]
        for search in cut:
            search.expand()
        ask_for_whole(cut, ask, geometry)

    while clicked := [(s, click) for s in asked if (click := s.next_disobeyed()) is not None]:
        ask_for_refinements(clicked, ask, geometry)

    return [
        left_alone(request, geometry.shape)
        if search is None
        else assemble(search.patches, geometry.shape, settings.true_iou(search.iou))
        for request, search in zip(requests, searches, strict=True)
    ]


def begin_search(
    request: ObjectRequest, geometry: Geometry, settings: AdaptiveSettings
) -> Search | None:
    """Where to look for an object; None where there is nothing to ask."""
    prompts, previous = request.prompts.newest, request.previous
    kept = previous.bounds if previous is not None else None
    bounds = geometry.bounds(prompts, kept, settings)
    is_asked = prompts.box is not None or len(prompts.clicks) > 0 or len(prompts.drawings) > 0
    if bounds is None or not is_asked or (prompts.is_right and previous is not None):
        return None
    begun = previous if kept is not None else None
    return Search(prompts, begun, bounds, step_of(bounds), iter(prompts.clicks))


def step_of(bounds: np.ndarray) -> np.ndarray:
    return EXPANSION * (bounds[1] - bounds[0])


def ask_for_whole(searches: Sequence[Search], ask: Ask, geometry: Geometry) -> None:
    queries = [search.whole_query(geometry) for search in searches]
    for search, query, answer in zip(searches, queries, ask(queries), strict=True):
        search.patches = [Patch(geometry.mask_roi(query.roi), answer.logits)]
        search.iou = answer.iou


def ask_for_refinements(
    clicked: Sequence[tuple[Search, Click]], ask: Ask, geometry: Geometry
) -> None:
    queries = [search.refinement_query(click, geometry) for search, click in clicked]
    for (search, _), query, answer in zip(clicked, queries, ask(queries), strict=True):
        search.patches.append(Patch(geometry.mask_roi(query.roi), answer.logits))


def left_alone(request: ObjectRequest, shape: Index3) -> Prediction:
    """The mask so far, of an object about which nothing is asked."""
    if request.prompts.is_right and request.previous is not None:
        return unchanged(request.previous, shape, RIGHT_LOGIT)
    return unchanged(request.previous, shape, KEPT_LOGIT)
