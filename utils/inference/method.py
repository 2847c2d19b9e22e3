"""Policies: how the prompts of a case become calls of the network, and labels again."""

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy import ndimage

from segment_anything.adaptive import ObjectRequest
from segment_anything.batches import Batches
from segment_anything.bounds import AdaptiveSettings, bounds_of
from segment_anything.modeling.sam3D import Sam3D
from segment_anything.patches import Mask
from segment_anything.predictor3D import Canvas, SamPredictor3D, default_batch_size
from utils.formats.case import Case
from utils.inference.baseline import check_undrawn, predict_baseline
from utils.options import POLICIES

Segmenter = Callable[[Case], np.ndarray]  # a case -> its (D, H, W) uint8 labels


class AdaptiveSegmenter:
    """Segments the objects of a case by all their prompts (`segment_anything.adaptive`).

    Args:
        predictor: Keeps the embeddings for further rounds on the same image.

    Attributes:
        doubtful: Of the objects of the last case those that the network itself takes for wrong,
            with its estimates of the IoU.
    """

    def __init__(self, predictor: SamPredictor3D) -> None:
        self.predictor = predictor
        self.doubtful: dict[int, float] = {}

    def __call__(self, case: Case) -> np.ndarray:
        """A case as `read_case` returns it -> (D, H, W) uint8, object i as label i.

        Raises:
            CaseError: There are drawings, which the network was not trained with.
        """
        predictor = self.predictor
        if not predictor.settings.drawings:
            check_undrawn(case)
        if predictor.volume is not case.image or predictor.spacing != case.spacing:
            predictor.set_image(case.image, case.spacing)
        canvas = Canvas(case.shape, case.overlap)
        requests = list(map(ObjectRequest, case.objects, previous_masks(case)))
        segment = predictor.replay if case.is_replayed else predictor.segment
        self.doubtful = {}
        for label, prediction in enumerate(segment(requests), 1):
            canvas.paint(label, prediction)
            if prediction.is_doubtful:
                self.doubtful[label] = prediction.iou
        return canvas.seg


def previous_masks(case: Case) -> list[Mask | None]:
    """Each object in prev_pred; None where it is not."""
    bounds = None if case.prev_pred is None else bounds_of(case.prev_pred)
    if case.prev_pred is None or bounds is None:
        return [None] * len(case.objects)
    # Most of a volume is background, which find_objects would look through slowly.
    starts = bounds[0].astype(int).tolist()
    labels = case.prev_pred[tuple(map(slice, starts, bounds[1].astype(int)))]
    masks: list[Mask | None] = []
    for label, found in enumerate(ndimage.find_objects(labels, max_label=len(case.objects)), 1):
        if found is None:
            masks.append(None)
            continue
        z, y, x = (
            slice(part.start + start, part.stop + start)
            for part, start in zip(found, starts, strict=True)
        )
        masks.append(Mask((z, y, x), labels[found] == label))
    return masks


def make_segmenter(
    model: Sam3D,
    policy: str = "baseline",
    settings: AdaptiveSettings | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: str = "fp32",
) -> Segmenter:
    """What turns a case into its (D, H, W) uint8 labels.

    Args:
        model: In eval mode, on the device to use.
        policy: One of POLICIES.
        settings: What the checkpoint was trained with, for the adaptive policy.
        seed: For the points that baseline draws.
        batch_size: Objects that go through the network together; None: 8 on a GPU, 1 on a CPU.
        precision: One of PRECISIONS.
    """
    assert policy in POLICIES, policy
    if policy == "adaptive":
        return AdaptiveSegmenter(SamPredictor3D(model, settings, precision, batch_size))
    batches = Batches(batch_size or default_batch_size(model.device))
    return partial(predict_baseline, model, seed=seed, batches=batches, precision=precision)
