"""One client's image and object, by nnInteractive's protocol; its axes are (z, y, x) here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segment_anything import SamPredictor3D
from segment_anything.adaptive import ObjectRequest
from segment_anything.bounds import AdaptiveSettings, bounds_of, union
from segment_anything.modeling.sam3D import Sam3D
from segment_anything.patches import Mask, Prediction
from segment_anything.predictor3D import MAX_UNDO
from segment_anything.prompts import Box, Click, Drawing, Index3, Prompts
from utils.formats.intensity import CT_WINDOWS, LOOKS_LIKE_HU, to_grey
from utils.serving.wire import DTYPES

MIN_MM, MAX_MM = 1e-4, 1e4  # of a spacing
BEYOND = 1.0  # voxels by which a coordinate may lie outside of the volume


class Refused(ValueError):
    """What a client asks can't be done; the message says why."""


@dataclass(frozen=True)
class Change:
    """What a prediction changed in the client's buffer.

    Attributes:
        ran: Whether anything was predicted or taken back.
        bbox: [low, high] along each axis, None where nothing changed.
        labels: What is now there, 0 and 1 in the buffer's type.
    """

    ran: bool
    bbox: list[list[int]] | None = None
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class State:
    """The object after an interaction.

    Attributes:
        prompts: All so far.
        mask: Labels to begin with, or the last prediction.
        is_pending: Whether there are prompts that were not predicted with.
    """

    prompts: Prompts = Prompts()
    mask: Mask | None = None
    is_pending: bool = False


class Session:
    """Holds an image and one object in it.

    Args:
        model: In eval mode, on the device to use; sessions share it.
        settings: Those that it was trained with.
        precision: One of PRECISIONS.
        window: For CT, level and width in HU; None: by the image's values.
    """

    def __init__(
        self,
        model: Sam3D,
        settings: AdaptiveSettings,
        precision: str = "fp32",
        window: tuple[float, float] | None = None,
    ) -> None:
        self.predictor = SamPredictor3D(model, settings, precision)
        self.window = window
        self.dtype = np.dtype(np.uint8)
        self.do_autozoom = True
        self._states = [State()]
        self._shown: Mask | None = None  # in the client's buffer

    def close(self) -> None:
        """Hold nothing any more."""
        self.predictor.forget_image()
        self.reset()

    def set_image(self, image: np.ndarray, properties: Any) -> list[str]:
        """Take a new image (1, D, H, W), and forget all before; returns what was chosen for it.

        Raises:
            Refused: It can't be used.
        """
        if image.ndim != 4 or image.shape[0] != 1:
            raise Refused(f"expected an image (1, D, H, W), got shape {image.shape}")
        spacing = _spacing(properties)
        values, window = image[0], self.window
        if values.dtype == np.bool_:
            values = values.astype(np.uint8)
        if window is None and values.dtype.kind in "if" and values.min() < LOOKS_LIKE_HU:
            window = CT_WINDOWS["abdomen"]
        try:
            grey, said = to_grey(values, window)
        except ValueError as error:
            raise Refused(str(error)) from error
        rule = "percentiles" if window is None else f"window {window[0]:g},{window[1]:g}"
        is_other = self.predictor.volume is None or self.predictor.volume.shape != values.shape
        shown = None if is_other else self._shown  # the buffer may still be the same
        self.predictor.set_image(grey, spacing)
        self.reset()
        self._shown = shown
        return [f"{'x'.join(map(str, values.shape))} {values.dtype}, grey levels by {rule}", *said]

    def set_buffer(self, shape: Any, name: Any) -> None:
        """Say what the client's buffer is like: empty, or with what it shows so far.

        Raises:
            Refused: It does not fit the image.
        """
        if name not in DTYPES or list(shape) != list(self._shape()):
            got = f"{str(shape)[:40]} of {str(name)[:20]}"
            raise Refused(f"expected a buffer {self._shape()} of a plain type, got {got}")
        self.dtype = np.dtype(name)

    def reset(self) -> None:
        """Forget the object."""
        self._states = [State()]
        self._shown = None

    def begin_with(self, labels: np.ndarray) -> None:
        """Take labels to correct, (D, H, W) that are not 0 in the object; prompts are forgotten."""
        if labels.shape != self._shape():
            raise Refused(f"expected labels {self._shape()}, got {labels.shape}")
        bounds = bounds_of(labels)
        mask = None
        if bounds is not None:
            region = _region(bounds)
            mask = Mask(region, labels[region] != 0)
        self._states = [State(Prompts(), mask, mask is not None)]
        self._shown = mask

    def add_point(self, coordinates: Any, is_foreground: bool) -> None:
        shape = self._shape()
        point = np.floor(_numbers(coordinates, 3, "coordinates") + 0.5)
        z, y, x = self._inside(point, np.array(shape) - 1).tolist()
        self._add(clicks=(*self._prompts.clicks, Click((z, y, x), is_foreground)))

    def add_box(self, coordinates: Any, is_foreground: bool) -> None:
        """A half-open box; one that is a voxel thick is one in a slice."""
        shape = self._shape()
        edges = np.array([_numbers(part, 2, "bbox_coords") for part in _three(coordinates)])
        edges = self._inside(np.floor(np.sort(edges, axis=1) + 0.5), np.array(shape)[:, None])
        low = np.minimum(edges[:, 0], np.array(shape) - 1)
        high = np.maximum(edges[:, 1], low + 1)  # at least one voxel
        box = Box(_index(low), _index(high))
        if is_foreground and not box.is_slice:
            self._add(box=box)
            return
        if not self.predictor.settings.drawings:
            raise Refused("expected a box of the whole object: the network takes no other")
        drawn = np.ones(high - low, bool)
        self._add_drawing(Drawing(box.start, drawn, True, is_foreground))

    def add_drawn(self, mask: np.ndarray, bbox: Any, is_foreground: bool, is_region: bool) -> None:
        """A scribble or a lasso: a mask of the whole volume, or of a box in it."""
        shape = self._shape()
        start = np.zeros(3, int)
        if bbox is not None:
            edges = np.array([_numbers(part, 2, "interaction_bbox") for part in _three(bbox)])
            start = edges[:, 0].astype(int)
        if mask.ndim != 3 or (start < 0).any() or (start + mask.shape > shape).any():
            raise Refused(f"expected a mask within {shape}, got {mask.shape} from {start.tolist()}")
        bounds = bounds_of(mask)
        if bounds is None:
            raise Refused("expected a mask that is not empty")
        if not self.predictor.settings.drawings:
            raise Refused("expected points or boxes: the network takes no scribbles and lassos")
        region = _region(bounds)
        first = start + [part.start for part in region]
        self._add_drawing(Drawing(_index(first), mask[region] != 0, is_region, is_foreground))

    def predict(self) -> Change:
        """Segment with the prompts that were not predicted with, if there are any."""
        state = self._states[-1]
        if not state.is_pending:
            return Change(False)
        mask, prompts = state.mask, state.prompts
        if prompts.box or prompts.clicks or prompts.drawings:
            try:
                (prediction,) = self.predictor.segment([ObjectRequest(prompts, mask)])
            except Exception:  # they would fail again
                self._states.pop()
                raise
            mask = _tight(prediction)
        self._states[-1] = State(prompts, mask)
        return self._show(mask)

    def prepare(self) -> None:
        """Do ahead what the next click is likely to need."""
        state = self._states[-1]
        if not state.is_pending and self.predictor.volume is not None:
            self.predictor.prepare(ObjectRequest(state.prompts, state.mask))

    def undo(self) -> Change:
        """Take the last interaction back."""
        if len(self._states) < 2:
            return Change(False)
        self._states.pop()
        return self._show(self._states[-1].mask)

    @property
    def _prompts(self) -> Prompts:
        return self._states[-1].prompts

    def _shape(self) -> Index3:
        try:
            return self.predictor.shape
        except ValueError as error:
            raise Refused(str(error)) from error

    def _inside(self, given: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Coordinates as integers, moved into the volume if they are just outside of it."""
        if (given < -BEYOND).any() or (given > last + BEYOND).any():
            raise Refused(f"expected coordinates within {self._shape()}, got {given.tolist()}")
        return np.clip(given, 0, last).astype(int)

    def _add(self, **prompts: Any) -> None:
        state = self._states[-1]
        new = replace(state, prompts=replace(state.prompts, **prompts), is_pending=True)
        self._states = [*self._states[-MAX_UNDO:], new]

    def _add_drawing(self, drawing: Drawing) -> None:
        self._add(drawings=(*self._prompts.drawings, drawing))

    def _show(self, mask: Mask | None) -> Change:
        """What changes in the client's buffer when it shows this mask next."""
        parts = [shown for shown in (self._shown, mask) if shown is not None]
        bounds = [b for shown in parts if (b := shown.bounds) is not None]
        self._shown = mask
        if not bounds:
            return Change(True)
        region = _region(union(*bounds))
        labels = np.zeros([part.stop - part.start for part in region], self.dtype)
        if mask is not None:
            own = tuple(
                slice(max(a.start, b.start), min(a.stop, b.stop))
                for a, b in zip(region, mask.region, strict=True)
            )
            there, here = (
                tuple(
                    slice(p.start - o.start, p.stop - o.start) for p, o in zip(own, of, strict=True)
                )
                for of in (region, mask.region)
            )
            labels[there] = mask.inside[here]
        return Change(True, [[part.start, part.stop] for part in region], labels)


def _tight(prediction: Prediction) -> Mask | None:
    """The mask of a prediction, on the smallest region that holds it."""
    kept = prediction.kept
    bounds = bounds_of(kept.inside)
    if bounds is None:
        return None
    inner = _region(bounds)
    region = _region(bounds + [part.start for part in kept.region])
    return Mask(region, kept.inside[inner].copy())


def _region(bounds: np.ndarray) -> tuple[slice, slice, slice]:
    z, y, x = (slice(int(a), int(b)) for a, b in bounds.T)
    return z, y, x


def _index(numbers: np.ndarray) -> Index3:
    z, y, x = (int(n) for n in numbers)
    return z, y, x


def _three(values: Any) -> Sequence[Any]:
    if not isinstance(values, list) or len(values) != 3:
        raise Refused(f"expected [low, high] along three axes, got {str(values)[:80]}")
    return values


def _numbers(values: Any, count: int, name: str) -> np.ndarray:
    is_list = isinstance(values, list) and len(values) == count
    if not is_list or not all(type(v) in (int, float) and abs(v) < 1e9 for v in values):
        raise Refused(f"expected {count} numbers as {name}, got {str(values)[:80]}")
    return np.array(values, float)


def _spacing(properties: Any) -> tuple[float, float, float]:
    """mm along the axes of the array; 1 mm where the client does not say."""
    given = properties.get("spacing") if isinstance(properties, dict) else None
    if given is None:
        return 1.0, 1.0, 1.0
    z, y, x = _numbers(given, 3, "spacing").tolist()
    if not all(MIN_MM <= mm <= MAX_MM for mm in (z, y, x)):
        raise Refused(f"expected a spacing of {MIN_MM:g} to {MAX_MM:g} mm, got {given}")
    return z, y, x
