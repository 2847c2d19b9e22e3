"""What a training step takes: samples side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Start(NamedTuple):
    """What the adaptive recipe begins with.

    Attributes:
        points: (B, N, 3) and
        labels: (B, N), prompts as PromptEncoder3D.forward takes them.
        mask: (B, 1, M, M, M) of 0 and 1. One that is not empty is a prediction to be corrected.
        drawings: (B, DRAWING_CHANNELS, S/2, S/2, S/2) bool; None: the network takes none.
    """

    points: Tensor
    labels: Tensor
    mask: Tensor
    drawings: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Samples side by side.

    Attributes:
        image: (B, 1, S, S, S) normalised ROIs.
        truth: (B, 1, S, S, S) bool.
        draws: (B, K) in [0, 1), that decide about the clicks; K depends on the recipe.
        names: The cases.
        failures: Messages about cases that could not be used, by path.
        start: None in the published recipe, which begins with a click on the empty mask.
    """

    image: Tensor
    truth: Tensor
    draws: Tensor
    names: tuple[str, ...]
    failures: dict[str, str]
    start: Start | None = None

    def pin_memory(self) -> "Batch":
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        image, truth, draws = map(change, (self.image, self.truth, self.draws))
        start = self.start
        if start is not None:
            drawings = None if start.drawings is None else change(start.drawings)
            points, labels, mask = map(change, start[:3])
            start = Start(points, labels, mask, drawings)
        return replace(self, image=image, truth=truth, draws=draws, start=start)


def collate(samples: Sequence[Batch]) -> Batch:
    """Batches of one -> one batch."""
    image, truth, draws = (
        torch.cat([getattr(sample, key) for sample in samples])
        for key in ("image", "truth", "draws")
    )
    names = tuple(name for sample in samples for name in sample.names)
    failures = {path: why for sample in samples for path, why in sample.failures.items()}
    starts = [sample.start for sample in samples if sample.start is not None]
    return Batch(image, truth, draws, names, failures, _joined(starts) if starts else None)


def _joined(starts: Sequence[Start]) -> Start:
    """Those of all samples, which have as many points by padding (label -1)."""
    points, labels, masks, drawings = zip(*starts, strict=True)
    count = max(kinds.shape[1] for kinds in labels)
    missing = [count - kinds.shape[1] for kinds in labels]
    return Start(
        torch.cat([F.pad(p, (0, 0, 0, n)) for p, n in zip(points, missing, strict=True)]),
        torch.cat([F.pad(k, (0, n), value=-1) for k, n in zip(labels, missing, strict=True)]),
        torch.cat(masks),
        None if drawings[0] is None else torch.cat(drawings),
    )
