"""Prepared cases -> training samples."""

import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from segment_anything.roi import crop_roi, crop_roi_nearest, normalise, roi_around
from utils.formats.npz import CaseError
from utils.formats.prepared import PreparedCase, map_volumes, read_prepared
from utils.training.published_step import FIRST_WITHOUT_POINT, LAST_WITHOUT_POINT, ROUNDS

MIN_VOXELS = 1000  # labels of not more are left out, as published
STEP = (1.0, 1.0, 1.0)  # prepared cases lie on the resampled grid

Item = tuple[int, int]  # epoch, and place in its order


@dataclass(frozen=True)
class Batch:
    """Samples side by side.

    Attributes:
        image: (B, 1, S, S, S) normalised ROIs.
        truth: The same, bool.
        draws: (B, ROUNDS), of the adaptive recipe (B, 2 * ADAPTIVE_ROUNDS), in [0, 1): for the
            clicks.
        names: Of the cases.
        failures: Messages about cases that could not be used, by name.
        start: What the adaptive recipe begins with; () in the published one, else points
            (B, N, 3) and labels (B, N) as PromptEncoder3D.forward takes them, and a mask
            (B, 1, M, M, M) of 0 and 1.
    """

    image: Tensor
    truth: Tensor
    draws: Tensor
    names: tuple[str, ...]
    failures: dict[str, str]
    start: tuple[Tensor, ...] = ()

    def pin_memory(self) -> "Batch":
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        image, truth, draws = map(change, (self.image, self.truth, self.draws))
        start = tuple(map(change, self.start))
        return replace(self, image=image, truth=truth, draws=draws, start=start)


def find_cases(
    folders: Sequence[str | Path], min_voxels: int = MIN_VOXELS, is_native: bool = False
) -> tuple[list[PreparedCase], dict[str, str]]:
    """The cases in and below the folders that have a label to train on, and why others failed.

    Cases are to be on their own grid if `is_native`, else resampled.

    Cases whose labels are all too small are left out without a message. Reads a few kB of each.
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
    """One sample per item and epoch. A sample depends on seed, epoch and item alone, not on the
    process that makes it.

    Args:
        cases: As `find_cases` returns them.
        size: Voxels along each side of the ROI.
        seed: Of everything that is drawn.
        min_voxels: Labels must have more.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        size: int,
        seed: int = 0,
        min_voxels: int = MIN_VOXELS,
    ) -> None:
        self.items, self.size, self.seed, self.min_voxels = list(cases), size, seed, min_voxels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: Item) -> Batch:
        """The sample of an epoch and an item, or that of the next item that can be used.

        Raises:
            CaseError: There is none.
        """
        epoch, first = item
        failures = {}
        count = len(self.items)
        for index in range(first, first + count):
            case = self.items[index % count]
            rng = np.random.default_rng((self.seed, epoch, index % count))
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
        """Of one; None if no label has enough voxels in its ROI.

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
        from monai.transforms import Compose, EnsureTyped, RandFlipd

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


def collate(samples: Sequence[Batch]) -> Batch:
    """Batches of one -> one batch."""
    image, truth, draws = (
        torch.cat([getattr(sample, key) for sample in samples])
        for key in ("image", "truth", "draws")
    )
    names = tuple(name for sample in samples for name in sample.names)
    failures = {path: why for sample in samples for path, why in sample.failures.items()}
    if not samples[0].start:
        return Batch(image, truth, draws, names, failures)
    points, labels, masks = zip(*(sample.start for sample in samples), strict=True)
    count = max(kinds.shape[1] for kinds in labels)
    missing = [count - kinds.shape[1] for kinds in labels]  # filled up with padding
    start = (
        torch.cat([F.pad(p, (0, 0, 0, n)) for p, n in zip(points, missing, strict=True)]),
        torch.cat([F.pad(k, (0, n), value=-1) for k, n in zip(labels, missing, strict=True)]),
        torch.cat(masks),
    )
    return Batch(image, truth, draws, names, failures, start)


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
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.n)
        order = np.resize(order, len(self) * self.batch_size * self.count)
        parts = order.reshape(len(self), self.count, self.batch_size)[self.first :, self.rank]
        for part in parts.tolist():
            yield [(self.epoch, index) for index in part]


def round_without_point(seed: int, epoch: int, step: int) -> int:
    """The round of a step that gets no point, the same in all processes."""
    rng = np.random.default_rng((seed, epoch, step, ROUNDS))
    return int(rng.integers(FIRST_WITHOUT_POINT, LAST_WITHOUT_POINT, endpoint=True))


def make_loader(
    dataset: CaseDataset, sampler: EpochSampler, num_workers: int, pin_memory: bool
) -> Iterable[Batch]:
    """Batches in the order of the sampler, made by `num_workers` processes, or by this one if 0."""
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_begin_worker,
    )


def prefetch(loader: Iterable[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """Batches on the device, made ready ahead in a thread; closing the generator ends it."""
    from prefetch_generator import BackgroundGenerator

    is_closed = False

    def feed() -> Iterator[Batch]:
        if device.type == "cuda":  # of this thread; else pinning opens a context on GPU 0
            torch.cuda.set_device(device)
        for batch in loader:
            if is_closed:
                return
            yield batch.to(device)

    ahead = BackgroundGenerator(feed(), max_prefetch=2)
    try:
        yield from ahead
    finally:
        is_closed = True
        with suppress(Exception):  # of batches that nobody will use
            for _ in ahead:  # the thread may wait for room in the queue
                pass


def _begin_worker(worker: int) -> None:
    """The signals that stop a run reach all its processes; these leave it to the first one."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
