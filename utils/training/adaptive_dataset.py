"""Samples of the adaptive recipe: ROIs, prompts and masks as inference meets them.

Where to look is decided on the host, from the prepared cases' files; what is seen there is made on
the device of the samples, of volumes that lie on it, without waiting for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from segment_anything.adaptive import drawings_in, points_in
from segment_anything.bounds import AdaptiveSettings, choose_bounds, refinement_bounds, roi_of
from segment_anything.modeling.hybrid3D import DRAWING_CHANNELS
from segment_anything.prompts import Click, Index3, Prompts
from segment_anything.roi import (
    Roi,
    crop_roi_averaged,
    crop_roi_nearest,
    crop_tensor_nearest,
    normalise,
)
from utils.evaluation.simulated_prompts import draw_shift, pixels_of_shift
from utils.formats.case import label_values
from utils.formats.label_map import LabelMap, read_label_map
from utils.formats.prepared import PreparedCase, boxes_and_counts, map_volumes
from utils.training.adaptive_step import ADAPTIVE_ROUNDS, ROUND_DRAWS
from utils.training.augmentation import change_intensities, deform, fields_of, spoil
from utils.training.batch import Batch, Start
from utils.training.case_mix import CaseMix
from utils.training.clicks import squared_depth
from utils.training.dataset import MIN_VOXELS, CaseDataset, Item
from utils.training.object_shape import ObjectShape, first_drawing, moved_box, slice_sides
from utils.training.options import ARTEFACTS
from utils.training.streams import Stream, stream
from utils.training.synthetic import make_case

MAX_REPEATS = 24  # samples of a case by itself; its number of labels ^ (2 / 3) otherwise
DRAWN = 0.3  # of the samples begin with a drawing, where the network takes them
WITHOUT_BOX = 0.15  # of the others, with a click
BEGUN = 0.25  # of the samples start from a perturbed mask
REFINED = 0.15  # of the samples are refinement crops, and start from a perturbed mask
DEFORMED = 0.5  # of those with a box that are no refinement crops
DEFORMED_MARGIN = 1 / 8  # of the ROI's sides, beyond it, from which a deformation takes voxels
ROI_SCALE = 0.2  # up to, as a power of e, along each axis
ROI_SHIFT = 0.06  # of the ROI's sides
PERMUTED = 0.3  # of the samples, in their axes
MIN_IN_ROI = 30  # voxels of the object, of the ROI
MAX_WRONG = 12  # voxels by which the border of a perturbed mask is wrong at most
PER_SYNTHETIC = 4  # samples of a synthetic case, which takes as long to make as they do
MAX_HELD = 256  # synthetic cases in memory, of each process; 1.5 MB each
MAX_MAPS = 32  # label maps at hand, of each process; packed ones in memory, about 10 MB each
MIN_SHAPES = 20  # labels of a case that gives its shapes to synthetic ones
MAX_OBLONG = 1.5  # of its voxels


class View(NamedTuple):
    """What is seen of an object.

    Attributes:
        image: (S, S, S) of 0..255.
        truth: (S, S, S) bool.
        coarse_truth: (M, M, M) bool.
        points: (N, 3) float32, prompts in voxels (z, y, x) of the ROI.
        labels: (N,) int64, as for PromptEncoder3D.forward.
        drawings: (DRAWING_CHANNELS, S/2, S/2, S/2) bool; None: the network takes none.
    """

    image: Tensor
    truth: Tensor
    coarse_truth: Tensor
    points: Tensor
    labels: Tensor
    drawings: Tensor | None


@dataclass(frozen=True)
class Source:
    """A case, and what is known of it.

    Attributes:
        case: As it was prepared.
        image: (D, H, W) uint8 and
        gts: (D, H, W) labels, in the memory of the host, or mapped.
        held: Both as tensors on the device of the samples; None: that is the host.
        objects: By label.
    """

    case: PreparedCase
    image: np.ndarray
    gts: np.ndarray
    held: tuple[Tensor, Tensor] | None = None
    objects: dict[int, ObjectShape] = field(default_factory=dict)

    @property
    def shape(self) -> Index3:
        d, h, w = self.gts.shape
        return d, h, w

    def crop_label(self, label: int, roi: Roi) -> Tensor:
        """(S, S, S) bool, nearest to the voxels of a ROI, on the device of the samples."""
        if self.held is None:
            return torch.from_numpy(crop_roi_nearest(self.gts, roi) == label)
        return crop_tensor_nearest(self.held[1], roi) == label

    def crop_image(self, roi: Roi, artefacts: float, rng: np.random.Generator) -> Tensor:
        """(S, S, S) of 0..255 on the device of the samples; a share has an artefact."""
        if rng.random() < artefacts:
            spoilt = spoil(crop_roi_averaged(self.image, roi), rng)
            return spoilt if self.held is None else spoilt.to(self.held[0].device)
        return crop_roi_averaged(self.image if self.held is None else self.held[0], roi)


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
            Some have the shapes of label maps.
        shapes: Files of these (read_label_map), some maybe more than once; default: cases that
            have many labels and about cubic voxels.
        factors: For CaseMix.
        device: Where samples are made; one that is not the CPU holds the volumes of all cases.
        artefacts: Share of the samples that have an artefact of a scanner.
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
        shapes: Sequence[Path] = (),
        factors: Mapping[str, float] | None = None,
        device: torch.device | str = "cpu",
        artefacts: float = ARTEFACTS,
    ) -> None:
        super().__init__(cases, size, seed, min_voxels)
        self.artefacts = artefacts
        self.mask_size, self.settings = mask_size, settings
        self.mix = CaseMix(cases, [self._repeats(case) for case in cases], factors)
        self.synthetic = synthetic
        self.shapes = tuple(shapes) or tuple(case.path for case in cases if has_shapes(case))
        self.device = torch.device(device)
        self._sources: dict[Path, Source] = {}

    def __len__(self) -> int:
        return self.real_count + self.synthetic

    @property
    def real_count(self) -> int:
        return len(self.mix)

    def case(self, epoch: int, index: int) -> PreparedCase:
        return self.mix.case(epoch, index)

    def __getstate__(self) -> dict[str, Any]:
        """Without what has been read and found out."""
        return self.__dict__ | {"_sources": {}}

    def __getitem__(self, item: Item) -> Batch:
        epoch, index = item
        if index >= self.real_count:
            rng = stream(Stream.SAMPLE, self.seed, epoch, index)
            number = (index - self.real_count) // PER_SYNTHETIC
            made = synthetic_case(self.seed, epoch, number, self.shapes, self.device)
            batch = self._sample_of(made, rng)
            if batch is not None:
                return batch
            index = int(rng.integers(self.real_count))
        return super().__getitem__((epoch, index))

    def _repeats(self, case: PreparedCase) -> int:
        return min(int(np.ceil(len(self.usable(case)) ** (2 / 3))), MAX_REPEATS)

    def sample(self, case: PreparedCase, rng: np.random.Generator) -> Batch | None:
        if case.path not in self._sources:
            self._sources[case.path] = source_of(case, *map_volumes(case.path), self.device)
        return self._sample_of(self._sources[case.path], rng)

    def _sample_of(self, source: Source, rng: np.random.Generator) -> Batch | None:
        case = source.case
        for i in rng.permutation(self.usable(case)):
            shape = self._shape(source, i)
            prompts, kept = self._first_prompts(source, shape, rng)
            bounds = choose_bounds(
                prompts, kept, self.size, source.shape, case.spacing, self.settings
            )
            assert bounds is not None
            bounds = jitter(bounds, rng)
            is_refined = rng.random() < REFINED
            if is_refined:
                bounds = refinement_bounds(bounds, shape.border_voxel(rng))
            roi = roi_of(bounds, self.size, self.size // self.mask_size, source.shape)
            seen = np.count_nonzero(crop_roi_nearest(source.gts, roi, stride=2) == shape.label)
            if 2**3 * seen < MIN_IN_ROI:
                continue
            if prompts.box is not None and not is_refined and rng.random() < DEFORMED:
                view = self._deformed_view(source, shape.label, roi, rng)
            else:
                view = self._view(source, shape.label, prompts, roi, rng)
            mask = torch.zeros([self.mask_size] * 3, dtype=torch.bool, device=self.device)
            if is_refined or kept is not None or rng.random() < BEGUN:
                mask = perturbed_mask(view.coarse_truth, rng)
            view = view._replace(image=normalise(change_intensities(view.image, rng)))
            return self._turned(case.path.name, view, mask, rng)
        return None

    def _shape(self, source: Source, i: int) -> ObjectShape:
        """The shape of the i-th label of a case."""
        label, bounds = int(source.case.labels[i]), source.case.label_boxes[i].T.astype(float)
        if label not in source.objects:
            source.objects[label] = ObjectShape(source.gts, label, bounds, self.mask_size)
        return source.objects[label]

    def _view(
        self, source: Source, label: int, prompts: Prompts, roi: Roi, rng: np.random.Generator
    ) -> View:
        """What inference sees."""
        truth = coarse = source.crop_label(label, roi)
        if self.mask_size != self.size:
            coarse = source.crop_label(label, roi.coarse(self.size // self.mask_size))
        points, labels = (torch.from_numpy(a).to(self.device) for a in points_in(prompts, roi))
        image, drawn = source.crop_image(roi, self.artefacts, rng), self._drawings(prompts, roi)
        return View(image, truth, coarse, points, labels, drawn)

    def _deformed_view(
        self, source: Source, label: int, roi: Roi, rng: np.random.Generator
    ) -> View:
        """The object deformed in its ROI, with a box that is made of it there."""
        margin = int(DEFORMED_MARGIN * self.size)
        z, y, x = (first - margin for first in roi.start)
        wide = replace(roi, size=self.size + 2 * margin, start=(z, y, x))
        seen = source.crop_image(wide, self.artefacts, rng), source.crop_label(label, wide)
        image, truth = deform(*seen, margin, rng)
        height, width = slice_sides(source.shape, rng)
        sides = round(height / roi.step[1]), round(width / roi.step[2])
        points = box_points(truth, pixels_of_shift(draw_shift(rng), sides))
        stride = self.size // self.mask_size
        first = stride // 2
        coarse = truth[first::stride, first::stride, first::stride]
        labels = torch.tensor([2, 3], device=self.device)
        return View(image, truth, coarse, points, labels, self._drawings(Prompts(), roi))

    def _drawings(self, prompts: Prompts, roi: Roi) -> Tensor | None:
        if not self.settings.drawings:
            return None
        drawn = drawings_in(prompts, roi)
        if drawn is None:
            half = [self.size // 2] * 3
            return torch.zeros(DRAWING_CHANNELS, *half, dtype=torch.bool, device=self.device)
        return torch.from_numpy(drawn).to(self.device)

    def _first_prompts(
        self, source: Source, shape: ObjectShape, rng: np.random.Generator
    ) -> tuple[Prompts, np.ndarray | None]:
        """What the user says at first; with a click, maybe bounds of what was found before."""
        if self.settings.drawings and rng.random() < DRAWN:
            return Prompts(drawings=(first_drawing(shape, rng),)), None
        if rng.random() >= WITHOUT_BOX:
            return Prompts(moved_box(shape.extent, source.shape, rng)), None
        prompts = Prompts(None, (Click(shape.first_click, True),))
        return prompts, shape.bounds if rng.random() < 0.5 else None

    def _turned(self, name: str, view: View, mask: Tensor, rng: np.random.Generator) -> Batch:
        """The sample with its axes flipped and exchanged at random."""
        flipped = np.flatnonzero(rng.random(3) < 0.5).tolist()
        order = rng.permutation(3).tolist() if rng.random() < PERMUTED else [0, 1, 2]
        volumes = (view.image, view.truth, mask.float())
        image, truth, start = (v.flip(flipped).permute(order)[None, None] for v in volumes)
        points = view.points.clone()
        points[:, flipped] = self.size - 1 - points[:, flipped]
        if len(points) > 1:  # a box: its lower and upper corner, again
            points = points.sort(dim=0).values
        drawn = view.drawings
        if drawn is not None:
            drawn = drawn.flip([1 + axis for axis in flipped])
            drawn = drawn.permute([0, *(1 + axis for axis in order)])[None].contiguous()
        draws = torch.from_numpy(rng.random((1, ADAPTIVE_ROUNDS * ROUND_DRAWS)))
        begin = Start(points[None, :, order], view.labels[None], start.contiguous(), drawn)
        return Batch(image.contiguous(), truth.contiguous(), draws, (name,), {}, begin)


def source_of(
    case: PreparedCase, image: np.ndarray, gts: np.ndarray, device: torch.device
) -> Source:
    """A case with its volumes, (D, H, W) uint8 and labels, on a device that is not the CPU."""
    if device.type == "cpu":
        return Source(case, image, gts)
    labels = gts.astype(np.uint8 if gts.dtype == np.uint8 else np.int32)  # as far as torch goes
    held = torch.tensor(image, device=device), torch.from_numpy(labels).to(device)
    return Source(case, image, gts, held)


def has_shapes(case: PreparedCase) -> bool:
    """Whether synthetic cases may have its shapes."""
    return len(case.labels) >= MIN_SHAPES and max(case.spacing) <= MAX_OBLONG * min(case.spacing)


@lru_cache(maxsize=MAX_HELD)  # since the samples of a case are not made one after the other
def synthetic_case(
    seed: int, epoch: int, number: int, shapes: tuple[Path, ...], device: torch.device
) -> Source:
    """A synthetic case.

    Args:
        seed: With epoch and number, decides what is made.
        epoch: In which it is seen.
        number: Counts the cases of the epoch.
        shapes: Files of label maps that may give the shapes.
        device: Where it is made.
    """
    rng = stream(Stream.SYNTHETIC, seed, epoch, number)
    maps = [partial(_label_map, path) for path in shapes]
    made = make_case(int(rng.integers(2**32)), maps, device=device)
    labels = label_values(made.gts)
    boxes, counts = boxes_and_counts(made.gts, labels)
    path = Path(f"synthetic case {number} of epoch {epoch}")
    case = PreparedCase(path, made.gts.shape, made.spacing, True, labels, boxes, counts)
    return source_of(case, made.image, made.gts, device)


@lru_cache(maxsize=MAX_MAPS)
def _label_map(path: Path) -> LabelMap:
    return read_label_map(path)


def box_points(truth: Tensor, moved: tuple[int, int]) -> Tensor:
    """The challenge's box of an object, as PromptEncoder3D.forward takes it.

    Args:
        truth: (S, S, S) bool.
        moved: Voxels by which y and x are moved.

    Returns:
        (2, 3) float32, its lower and upper corner, (z, y, x) in voxels.
    """
    size = truth.shape[0]
    index = torch.arange(size, device=truth.device)
    in_z = truth.flatten(1).any(dim=1)
    is_middle = in_z & (in_z.cumsum(dim=0) == in_z.sum() // 2 + 1)
    plane = (truth & is_middle[:, None, None]).any(dim=0)
    corners = []
    for rows, far in ((in_z, 0), (plane.any(dim=1), moved[0]), (plane.any(dim=0), moved[1])):
        low = torch.where(rows, index, size).amin() - far
        high = torch.where(rows, index, -1).amax() + far
        corners.append(torch.stack([low, high]).clamp(0, size - 1))
    return torch.stack(corners, dim=1).float()


def jitter(bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scaled and moved along each axis at random."""
    side = bounds[1] - bounds[0]
    middle = bounds.mean(axis=0) + rng.uniform(-ROI_SHIFT, ROI_SHIFT, 3) * side
    side = side * np.exp(rng.uniform(-ROI_SCALE / 2, ROI_SCALE, 3))
    return middle + np.outer([-0.5, 0.5], side)


def perturbed_mask(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """A (M, M, M) bool mask as an earlier round may have left it: wrong in smooth places."""
    fields = fields_of(mask, rng)
    noise = fields.uniform(0.5, 4) * fields.smooth(fields.integer(4, 12))[0]
    wrong = len(mask) / 32 * (noise + fields.uniform(-1.5, 1.5))
    return signed_distance(mask) + wrong.clamp(-MAX_WRONG, MAX_WRONG) > 0


def signed_distance(mask: Tensor) -> Tensor:
    """Distance in voxels to the other side of a (M, M, M) bool mask's border, negative outside.

    Exact up to MAX_WRONG; farther away it is at least that.
    """
    inside, outside = squared_depth(torch.stack([mask, ~mask]), reach=MAX_WRONG).float().sqrt()
    return inside - outside
