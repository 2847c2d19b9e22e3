"""The policy baseline: the published method, decision for decision."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segment_anything.batches import Batches
from segment_anything.modeling.sam3D import MASK_THRESHOLD, Sam3D
from segment_anything.predictor3D import autocast, default_batch_size
from segment_anything.prompts import Index3, Prompts
from segment_anything.roi import (
    Roi,
    crop_roi,
    crop_roi_nearest,
    normalise,
    paste_roi,
    resampled_range,
    roi_around,
)
from utils.formats.case import Case
from utils.formats.npz import CaseError

TARGET_SPACING = 1.5  # mm; the resolution of the published training data
PROMPT_RADIUS = 10  # original voxels round a prompt that count as the prompt, as published


@dataclass(frozen=True)
class BaselineQuery:
    """One object's call of the network: where it looks, and the one positive point there."""

    label: int
    roi: Roi
    point_roi: Index3


def baseline_prompt(prompts: Prompts) -> tuple[float, float, float] | None:
    """The one point (z, y, x) that the published method uses, or None if it does nothing.

    Its order is the box's centre, foreground clicks, background clicks; the last one counts, and
    a background click means "leave the object as it is".
    """
    foreground = [click.point for click in prompts.clicks if click.is_foreground]
    if len(foreground) < len(prompts.clicks):
        return None
    if foreground:
        return foreground[-1]
    if prompts.box is None:
        return None
    low, high = prompts.box.start, prompts.box.stop
    z, y, x = ((a + b - 1) / 2 for a, b in zip(low, high, strict=True))
    return z, y, x


def baseline_query(
    label: int, point: tuple[float, float, float], case: Case, size: int, rng: np.random.RandomState
) -> BaselineQuery:
    """Centre the ROI on the cube round the prompt, and draw a voxel of that cube as the point."""
    # An axis of one voxel is not resampled.
    z, y, x = (
        TARGET_SPACING / spacing if n > 1 else 1.0
        for spacing, n in zip(case.spacing, case.shape, strict=True)
    )
    step = (z, y, x)
    ranges = []
    for p, t, n in zip(point, step, case.shape, strict=True):
        low, high = max(int(p - PROMPT_RADIUS), 0), min(int(p + PROMPT_RADIUS) + 1, n)
        ranges.append(resampled_range(low, high, t, n))
    roi = roi_around(ranges, size, step, case.shape)
    cube = [
        (max(first, start), min(last, start + size))
        for (first, last), start in zip(ranges, roi.start, strict=True)
    ]
    sides = [last - first for first, last in cube]
    drawn = np.unravel_index(rng.randint(np.prod(sides)), sides)
    z, y, x = (int(d) + first - s for d, (first, _), s in zip(drawn, cube, roi.start, strict=True))
    return BaselineQuery(label, roi, (z, y, x))


def baseline_queries(case: Case, size: int, seed: int) -> Iterator[BaselineQuery]:
    """The calls that the published method makes for a case, in the order of its objects."""
    rng = np.random.RandomState(seed)
    for i, prompts in enumerate(case.objects):
        point = baseline_prompt(prompts)
        if point is not None:
            yield baseline_query(i + 1, point, case, size, rng)


def predict_rois(
    model: Sam3D, case: Case, queries: Sequence[BaselineQuery], precision: str
) -> np.ndarray:
    """Run the network on a batch of queries -> (B, S, S, S) bool."""
    device, stride = model.device, model.img_size // model.mask_size
    images = torch.stack([normalise(crop_roi(case.image, query.roi)) for query in queries])
    masks = np.zeros((len(queries), *[model.mask_size] * 3), np.float32)
    if case.prev_pred is not None:
        for mask, query in zip(masks, queries, strict=True):
            mask[:] = crop_roi_nearest(case.prev_pred, query.roi, stride) == query.label
    points = torch.tensor([[query.point_roi] for query in queries], dtype=torch.float32)
    labels = torch.ones(len(queries), 1, dtype=torch.int64)

    with torch.inference_mode(), autocast(device, precision):
        embedding = model.encode(images[:, None].to(device))
        low_res_mask, _ = model.decode(
            embedding,
            points=(points.to(device), labels.to(device)),
            mask_prompt=torch.from_numpy(masks)[:, None].to(device),
        )
        logits = model.upscale(low_res_mask)
    return (logits[:, 0] > MASK_THRESHOLD).cpu().numpy()


def check_undrawn(case: Case) -> None:
    """Raises CaseError if a case has drawings."""
    if any(prompts.drawings for prompts in case.objects):
        raise CaseError(
            f"{case.name}: expected boxes of whole objects and clicks, got drawings, for which a "
            "network is needed that was trained with them"
        )


def predict_baseline(
    model: Sam3D,
    case: Case,
    seed: int = 0,
    batches: Batches | None = None,
    precision: str = "fp32",
) -> np.ndarray:
    """Segment the objects of a case by the published method.

    Args:
        model: In eval mode, on the device to use.
        case: As `read_case` returns it.
        seed: For the points that are drawn; the same in each case, whatever came before.
        batches: How many objects go through the network together; None: 8 on a GPU, 1 on a CPU.
        precision: One of PRECISIONS.

    Returns:
        (D, H, W) uint8, object i of the case as label i, a later object over an earlier one.
    """
    check_undrawn(case)
    if case.overlap != "highest":
        raise CaseError(f"{case.name}: overlap {case.overlap}: needs the policy adaptive")
    seg = np.zeros(case.shape, np.uint8) if case.prev_pred is None else case.prev_pred.copy()
    queries = baseline_queries(case, model.img_size, seed)
    batches = batches or Batches(default_batch_size(model.device))

    def ask(batch: Sequence[BaselineQuery]) -> list[tuple[BaselineQuery, np.ndarray]]:
        return list(zip(batch, predict_rois(model, case, batch, precision), strict=True))

    for query, mask_roi in batches.ask(ask, queries):
        region, mask = paste_roi(mask_roi, query.roi)
        # The published method unites each object with its part of prev_pred and paints them in
        # order: the highest label that claims a voxel keeps it.
        np.maximum(seg[region], np.uint8(query.label) * mask, out=seg[region])
    return seg
