"""Samples of the adaptive recipe: ROIs, prompts and masks as inference meets them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from edt import sdf
from scipy import ndimage
from torch import Tensor

from segment_anything.adaptive import points_in
from segment_anything.bounds import AdaptiveSettings, choose_bounds, refinement_bounds, roi_of
from segment_anything.prompts import Box, Click, Prompts
from segment_anything.roi import Roi, crop_roi_averaged, crop_roi_nearest, normalise
from utils.evaluation.simulated_prompts import challenge_box, largest_error_click
from utils.formats.case import label_values
from utils.formats.prepared import PreparedCase, boxes_and_counts, map_volumes
from utils.training.adaptive_step import ADAPTIVE_ROUNDS
from utils.training.augmentation import change_intensities, deform
from utils.training.batch import Batch, Start
from utils.training.dataset import MIN_VOXELS, CaseDataset, Item
from utils.training.streams import Stream, stream
from utils.training.synthetic import make_case

MAX_REPEATS = 24  # samples of a case in an epoch; its number of labels ^ (2 / 3) otherwise
FULL_SLICES = 0.5  # of the boxes are moved as if the case were cut out of whole slices,
FULL_SIDES = (128, 512)  # so many voxels wide and high; the others as in slices of the case's size
WITHOUT_BOX = 0.15  # of the samples
BEGUN = 0.25  # of the samples start from a perturbed mask
REFINED = 0.15  # of the samples are refinement crops, and start from a perturbed mask
DEFORMED = 0.1  # of those with a box that are no refinement crops
DEFORMED_MARGIN = 1 / 8  # of the ROI's sides, beyond it, from which a deformation takes voxels
ROI_SCALE = 0.2  # up to, as a power of e, along each axis
ROI_SHIFT = 0.06  # of the ROI's sides
PERMUTED = 0.3  # of the samples, in their axes
MIN_IN_ROI = 30  # voxels of the object, of the ROI
PER_SYNTHETIC = 4  # samples of a synthetic case, which takes as long to make as they do
MAX_HELD = 256  # synthetic cases in memory, of each process; 1.5 MB each
MIN_SHAPES = 20  # labels of a case that gives its shapes to synthetic ones
MAX_OBLONG = 1.5  # of its voxels


class View(NamedTuple):
    """What is seen of an object.

    Attributes:
        image: (S, S, S) of 0..255, then normalised.
        truth: (S, S, S) bool.
        coarse_truth: (M, M, M) bool.
        points: (N, 3) float, prompts in voxels (z, y, x) of the ROI.
        labels: (N,) as for PromptEncoder3D.forward.
    """

    image: Tensor
    truth: np.ndarray
    coarse_truth: np.ndarray
    points: np.ndarray
    labels: np.ndarray


class AdaptiveDataset(CaseDataset):
    """A random label of a case, on the ROI that its prompts ask for.

    Args:
        cases: As `find_cases` returns them, on their own grids.
        size: Voxels along each side of the ROI.
        mask_size: Voxels along each side of the network's masks.
        settings: The policy's, as they go into the checkpoint.
        seed: For all that is drawn.
        min_voxels: Labels must have more.
        synthetic: Samples of an epoch from cases that are made for it, beside those of `cases`.
            Some have the shapes of one with many labels and about cubic voxels.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        size: int,
        mask_size: int,
        settings: AdaptiveSettings,
        seed: int = 0,
        min_voxels: int = MIN_VOXELS,
        synthetic: int = 0,
    ) -> None:
        super().__init__(cases, size, seed, min_voxels)
        self.mask_size, self.settings = mask_size, settings
        self.items = [case for case in cases for _ in range(self._repeats(case))]
        self.synthetic = synthetic
        self.shapes = tuple(case.path for case in cases if has_shapes(case))

    def __len__(self) -> int:
        return len(self.items) + self.synthetic

    def __getitem__(self, item: Item) -> Batch:
        epoch, index = item
        if index >= len(self.items):
            rng = stream(Stream.SAMPLE, self.seed, epoch, index)
            number = (index - len(self.items)) // PER_SYNTHETIC
            made = synthetic_case(self.seed, epoch, number, self.shapes)
            batch = self._sample_of(*made, rng)
            if batch is not None:
                return batch
            index = int(rng.integers(len(self.items)))
        return super().__getitem__((epoch, index))

    def _repeats(self, case: PreparedCase) -> int:
        return min(int(np.ceil(len(self.usable(case)) ** (2 / 3))), MAX_REPEATS)

    def sample(self, case: PreparedCase, rng: np.random.Generator) -> Batch | None:
        return self._sample_of(case, *map_volumes(case.path), rng)

    def _sample_of(
        self, case: PreparedCase, image: np.ndarray, gts: np.ndarray, rng: np.random.Generator
    ) -> Batch | None:
        for i in rng.permutation(self.usable(case)):
            label, whole = case.labels[i], case.label_boxes[i].T.astype(float)
            prompts, kept = self._first_prompts(gts, label, whole, rng)
            d, h, w = case.shape
            bounds = choose_bounds(prompts, kept, self.size, (d, h, w), case.spacing, self.settings)
            assert bounds is not None
            bounds = jitter(bounds, rng)
            is_refined = rng.random() < REFINED
            if is_refined:
                at = self._voxel(gts, label, whole, rng, is_border=True)
                bounds = refinement_bounds(bounds, at)
            roi = roi_of(bounds, self.size, self.size // self.mask_size, (d, h, w))
            if prompts.box is not None and not is_refined and rng.random() < DEFORMED:
                view = self._deformed_view(image, gts, label, roi, rng)
            else:
                view = self._view(image, gts, label, prompts, roi)
            if view is None:
                continue
            mask = np.zeros([self.mask_size] * 3, bool)
            if is_refined or kept is not None or rng.random() < BEGUN:
                mask = perturbed_mask(view.coarse_truth, rng)
            view = view._replace(image=normalise(change_intensities(view.image, rng)))
            return self._turned(case.path.name, view, mask, rng)
        return None

    def _view(
        self, image: np.ndarray, gts: np.ndarray, label: int, prompts: Prompts, roi: Roi
    ) -> View | None:
        """What inference sees; None if too little of the object is in the ROI."""
        truth = crop_roi_nearest(gts, roi) == label
        if np.count_nonzero(truth) < MIN_IN_ROI:
            return None
        coarse = crop_roi_nearest(gts, roi.coarse(self.size // self.mask_size)) == label
        return View(crop_roi_averaged(image, roi), truth, coarse, *points_in(prompts, roi))

    def _deformed_view(
        self, image: np.ndarray, gts: np.ndarray, label: int, roi: Roi, rng: np.random.Generator
    ) -> View | None:
        """The object deformed in its ROI, with a box that is made of it there."""
        margin = int(DEFORMED_MARGIN * self.size)
        z, y, x = (first - margin for first in roi.start)
        wide = replace(roi, size=self.size + 2 * margin, start=(z, y, x))
        mask = crop_roi_nearest(gts, wide) == label
        roi_image, truth = deform(crop_roi_averaged(image, wide), mask, margin, rng)
        if np.count_nonzero(truth) < MIN_IN_ROI:
            return None
        sides = zip(_slice_sides(gts.shape, rng), roi.step[1:], strict=True)
        height, width = (round(side / step) for side, step in sides)
        box, _ = challenge_box(truth, rng, shift_shape=(height, width))
        whole = Roi(self.size, (0, 0, 0), (1.0, 1.0, 1.0), (self.size,) * 3)
        stride = self.size // self.mask_size
        coarse = crop_roi_nearest(truth, whole.coarse(stride)) > 0
        return View(roi_image, truth, coarse, *points_in(Prompts(box), whole))

    def _first_prompts(
        self, gts: np.ndarray, label: int, whole: np.ndarray, rng: np.random.Generator
    ) -> tuple[Prompts, np.ndarray | None]:
        """What the user says at first; without a box, maybe bounds of what was found before."""
        if rng.random() >= WITHOUT_BOX:
            return Prompts(self._box(gts, label, whole, rng)), None
        point = self._voxel(gts, label, whole, rng, is_border=False)
        prompts = Prompts(None, (Click(point, True),))
        return prompts, whole if rng.random() < 0.5 else None

    def _box(self, gts: np.ndarray, label: int, whole: np.ndarray, rng: np.random.Generator) -> Box:
        """The challenge's box of an object in `whole`, its bounds."""
        (z0, y0, x0), (z1, y1, x1) = whole.astype(int).tolist()
        mask = gts[z0:z1, y0:y1, x0:x1] == label
        slice_shape = (gts.shape[1], gts.shape[2])
        sides = _slice_sides(gts.shape, rng)
        return challenge_box(mask, rng, (z0, y0, x0), slice_shape, sides)[0]

    def _voxel(
        self,
        gts: np.ndarray,
        label: int,
        whole: np.ndarray,
        rng: np.random.Generator,
        is_border: bool,
    ) -> tuple[int, int, int]:
        """A random voxel near an object's border, or the one that the evaluator clicks at first."""
        roi = roi_of(whole, self.mask_size, 1, gts.shape)  # type: ignore[arg-type]
        mask = crop_roi_nearest(gts, roi) == label
        if not mask.any():  # thinner than the grid
            z, y, x = whole.mean(axis=0).astype(int).tolist()
            return z, y, x
        if is_border:
            border = np.argwhere(mask & ~ndimage.binary_erosion(mask))
            at = border[rng.integers(len(border))]
        else:
            click = largest_error_click(mask, np.zeros_like(mask))
            assert click is not None
            at = np.array(click.point)
        z, y, x = _original(roi, at)
        return z, y, x

    def _turned(self, name: str, view: View, mask: np.ndarray, rng: np.random.Generator) -> Batch:
        """The sample with its axes flipped and exchanged at random."""
        volumes = [view.image, torch.from_numpy(view.truth), torch.from_numpy(mask).float()]
        flipped = np.flatnonzero(rng.random(3) < 0.5).tolist()
        order = rng.permutation(3).tolist() if rng.random() < PERMUTED else [0, 1, 2]
        image, truth, start = (v.flip(flipped).permute(order)[None, None] for v in volumes)
        points, labels = view.points.copy(), view.labels
        points[:, flipped] = self.size - 1 - points[:, flipped]
        corners = np.isin(labels, (2, 3))
        points[corners] = np.sort(points[corners], axis=0)  # lower and upper, again
        points = np.ascontiguousarray(points[:, order])
        draws = torch.from_numpy(rng.random((1, 2 * ADAPTIVE_ROUNDS)))
        begin = Start(torch.from_numpy(points)[None], torch.from_numpy(labels)[None], start)
        return Batch(image.contiguous(), truth.contiguous(), draws, (name,), {}, begin)


def has_shapes(case: PreparedCase) -> bool:
    """Whether synthetic cases may have its shapes."""
    return len(case.labels) >= MIN_SHAPES and max(case.spacing) <= MAX_OBLONG * min(case.spacing)


@lru_cache(maxsize=MAX_HELD)  # since the samples of a case are not made one after the other
def synthetic_case(
    seed: int, epoch: int, number: int, shapes: tuple[Path, ...]
) -> tuple[PreparedCase, np.ndarray, np.ndarray]:
    """A synthetic case, its image and its labels.

    Args:
        seed: With epoch and number, decides what is made.
        epoch: In which it is seen.
        number: Counts the cases of the epoch.
        shapes: Prepared cases whose labels may give the shapes.
    """
    rng = stream(Stream.SYNTHETIC, seed, epoch, number)
    made = make_case(int(rng.integers(2**32)), [partial(_labels_in, path) for path in shapes])
    labels = label_values(made.gts)
    boxes, counts = boxes_and_counts(made.gts, labels)
    path = Path(f"synthetic case {number} of epoch {epoch}")
    case = PreparedCase(path, made.gts.shape, made.spacing, True, labels, boxes, counts)
    return case, made.image, made.gts


def _labels_in(path: Path) -> np.ndarray:
    return map_volumes(path)[1]


def _slice_sides(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[int, int]:
    """Height and width of the slices that a box is made in: those of the case, or wider ones.

    The challenge moves boxes the farther the larger the slices are.
    """
    side = int(rng.integers(*FULL_SIDES, endpoint=True)) if rng.random() < FULL_SLICES else 0
    return max(side, shape[1]), max(side, shape[2])


def jitter(bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scaled and moved along each axis at random."""
    side = bounds[1] - bounds[0]
    middle = bounds.mean(axis=0) + rng.uniform(-ROI_SHIFT, ROI_SHIFT, 3) * side
    side = side * np.exp(rng.uniform(-ROI_SCALE / 2, ROI_SCALE, 3))
    return middle + np.outer([-0.5, 0.5], side)


def perturbed_mask(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A (M, M, M) bool mask as an earlier round may have left it: wrong in smooth places."""
    voxels = len(mask) / 32
    coarse = ndimage.gaussian_filter(rng.standard_normal([16] * 3), rng.uniform(0.5, 2))
    noise = ndimage.zoom(coarse / coarse.std(), len(mask) / 16, order=1)
    wrong = voxels * (rng.uniform(0.5, 4) * noise + rng.uniform(-1.5, 1.5))
    return sdf(np.ascontiguousarray(mask)) + wrong > 0


def _original(roi: Roi, voxel: np.ndarray) -> list[int]:
    """The original voxel nearest to one of a ROI."""
    position = np.floor((voxel + roi.start + 0.5) * roi.step).astype(int)
    return np.clip(position, 0, np.array(roi.shape) - 1).tolist()
