"""Prepared cases -> training samples, in the order of an epoch."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.transforms import Compose, EnsureTyped, RandFlipd
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from segment_anything.roi import crop_roi, crop_roi_nearest, normalise, roi_around
from utils.formats.npz import CaseError
from utils.formats.prepared import PreparedCase, map_volumes, read_prepared
from utils.training.batch import Batch, collate
from utils.training.published_step import ROUNDS
from utils.training.streams import Stream, stream

MIN_VOXELS = 1000  # labels of not more are left out, as published
STEP = (1.0, 1.0, 1.0)  # prepared cases lie on the resampled grid

Item = tuple[int, int]  # epoch, and index of the sample


def find_cases(
    folders: Sequence[str | Path], min_voxels: int = MIN_VOXELS, is_native: bool = False
) -> tuple[list[PreparedCase], dict[str, str]]:
    """Find the cases to train on; reads a few kB of each.

    Args:
        folders: Searched with all that is below.
        min_voxels: Cases without a label that has more are left out without a message.
        is_native: Expect cases on their own grid, else resampled ones.

    Returns:
        The cases, in the order of their paths, and why others can't be used, by path.
    """
    cases, failures = [], {}
    for path in sorted({path for folder in folders for path in Path(folder).rglob("*.npz")}):
        try:
            case = read_prepared(path)
        except (CaseError, OSError) as error:
            failures[str(path)] = str(error)
            continue
        if case.is_native != is_native:
            failures[str(path)] = (
                f"{path.name}: expected a case prepared {'with' if is_native else 'without'} "
                "--native for this recipe"
            )
            continue
        if case.label_counts.max(initial=0) > min_voxels:
            cases.append(case)
    return cases, failures


class CaseDataset(Dataset):
    """A sample for each index and epoch, the same in whichever process it is made.

    Args:
        cases: As `find_cases` returns them.
        size: Voxels along each side of the ROI.
        seed: For all that is drawn; a sample depends on it, the epoch and the index alone.
        min_voxels: Labels must have more.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        size: int,
        seed: int = 0,
        min_voxels: int = MIN_VOXELS,
    ) -> None:
        self.cases = list(cases)
        self.size, self.seed, self.min_voxels = size, seed, min_voxels

    def __len__(self) -> int:
        return self.real_count

    @property
    def real_count(self) -> int:
        """Samples of an epoch that are of the cases."""
        return len(self.cases)

    def case(self, epoch: int, index: int) -> PreparedCase:
        """That of one of these samples."""
        return self.cases[index]

    def __getitem__(self, item: Item) -> Batch:
        """The sample of an epoch and an index, or that of the next index that can be used.
        Raises:
            CaseError: There is none.
        """
        epoch, first = item
        failures = {}
        count = self.real_count
        for index in range(first, first + count):
            case = self.case(epoch, index % count)
            rng = stream(Stream.SAMPLE, self.seed, epoch, index % count)
            try:
                batch = self.sample(case, rng)
            except (CaseError, OSError) as error:
                failures[str(case.path)] = str(error)
                continue
            if batch is not None:
                return replace(batch, failures=failures)
        raise CaseError(
            f"none of {count} samples has a label of more than {self.min_voxels} voxels and "
            f"enough of it in its ROI; {len(failures)} can't be read: "
            f"{'; '.join(failures.values())[:500]}"
        )

    def usable(self, case: PreparedCase) -> np.ndarray:
        """Which of a case's labels have enough voxels."""
        return np.flatnonzero(case.label_counts > self.min_voxels)

    def sample(self, case: PreparedCase, rng: np.random.Generator) -> Batch | None:
        """A sample of one case; None if no label has enough voxels in its ROI.

        Raises:
            CaseError, OSError: The case can't be used.
        """
        raise NotImplementedError


class RoiDataset(CaseDataset):
    """One sample per case and epoch: a random label of it, in the middle of its ROI.

    The published recipe: the label made binary, the ROI cropped or padded round it, flipped along
    each axis at random, normalised as for inference.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        both = ["image", "truth"]
        flips = [RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)]
        self.augment = Compose([*flips, EnsureTyped(both, track_meta=False)])

    def sample(self, case: PreparedCase, rng: np.random.Generator) -> Batch | None:
        """None for labels of parts far from each other, with nothing in the middle."""
        image, gts = map_volumes(case.path)
        for i in rng.permutation(self.usable(case)):
            ranges = cast(list[tuple[int, int]], case.label_boxes[i].tolist())
            d, h, w = case.shape
            roi = roi_around(ranges, self.size, STEP, (d, h, w))
            mask = crop_roi_nearest(gts, roi) == case.labels[i]
            if np.count_nonzero(mask) > self.min_voxels:
                roi_image, truth = self._augmented(crop_roi(image, roi), mask, rng)
                draws = torch.from_numpy(rng.random((1, ROUNDS)))
                return Batch(roi_image[None], truth[None], draws, (case.path.name,), {})
        return None

    def _augmented(
        self, image: Tensor, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        self.augment.set_random_state(int(rng.integers(2**31)))
        sample = self.augment({"image": image[None], "truth": torch.from_numpy(mask)[None]})
        return normalise(sample["image"]), sample["truth"]


class EpochSampler(Sampler[list[Item]]):
    """The batches of one process in one epoch.

    The cases are shuffled, cut into batches for all processes together, the last one filled up
    from the beginning, and each of these is cut into a part per process: so that two processes
    see what one process with the double batch sees.

    Attributes:
        epoch: To be set before each iteration.
        first: The batch to begin with.
    """

    def __init__(self, n: int, batch_size: int, seed: int, rank: int = 0, count: int = 1) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.count = rank, count
        self.epoch = self.first = 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return -(-self.n // (self.batch_size * self.count))

    def __iter__(self) -> Iterator[list[Item]]:
        order = stream(Stream.ORDER, self.seed, self.epoch).permutation(self.n)
        order = np.resize(order, len(self) * self.batch_size * self.count)
        parts = order.reshape(len(self), self.count, self.batch_size)[self.first :, self.rank]
        for part in parts.tolist():
            yield [(self.epoch, index) for index in part]


def make_loader(
    dataset: CaseDataset, sampler: EpochSampler, num_workers: int, pin_memory: bool
) -> "DataLoader[Batch]":
    """Batches in the order of the sampler, made by `num_workers` processes, or by this one if 0."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_begin_worker,
    )


def _begin_worker(worker: int) -> None:
    """Leave the signals that stop a run, which reach all its processes, to the main one."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
