"""The clicks of training steps: on the errors of many samples at once, where the samples are.

On a GPU nothing waits for the host: shapes and the number of operations do not depend on masks.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.evaluation.simulated_prompts import CLICK_SEED, largest_error_click

HOOKS = 12  # rounds in which components join; mazes of 64^3 voxels took up to 9
JUMPS = 4  # along the pointers of a component, after each
ON_HOST = ("cpu",)  # where SciPy and edt are several times as fast


@dataclass(frozen=True)
class Clicks:
    """The clicks of R rounds: points (R, B, 1, 3), voxels in (z, y, x), and labels (R, B, 1)."""

    points: Tensor
    labels: Tensor


def random_error_click(pred: Tensor, truth: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """A voxel drawn uniformly from where masks differ, or from all where they don't.

    Args:
        pred: (B, 1, S, S, S) bool.
        truth: (B, 1, S, S, S) bool.
        draw: (B,) in [0, 1), decides which voxel.

    Returns:
        Points (B, 1, 3) float in (z, y, x) and labels (B, 1): 1 where the truth is, else 0.
    """
    errors = (pred != truth)[:, 0]
    errors |= ~errors.flatten(1).any(dim=1)[:, None, None, None]
    count = errors.flatten(1).count_nonzero(dim=1)
    return _click_on(_nth_voxel(errors, (draw.to(errors.device) * count).long()), truth)


def centre_clicks(pred: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The evaluator's click on each sample, equal to `largest_error_click`, ties included.

    Args:
        pred: (B, 1, S, S, S) bool.
        truth: (B, 1, S, S, S) bool.

    Returns:
        Points (B, 1, 3) float in (z, y, x) and labels (B, 1); label -1, as of padding, where the
        masks are equal.
    """
    errors = (pred != truth)[:, 0]
    depth = squared_depth(largest_components(errors))
    deepest = depth.flatten(1).amax(dim=1)
    farthest = (depth == deepest[:, None, None, None]) & (depth > 0)
    chosen = _choice(farthest.flatten(1).count_nonzero(dim=1))
    points, labels = _click_on(_nth_voxel(farthest, chosen), truth)
    return points, torch.where(deepest[:, None] > 0, labels, -1)


def error_clicks(
    pred: Tensor, truth: Tensor, draws: Tensor, is_centred: Tensor
) -> tuple[Tensor, Tensor]:
    """A click on an error of each sample: in the middle of the largest one, or on a random voxel.

    Args:
        pred: (B, 1, S, S, S) bool.
        truth: (B, 1, S, S, S) bool.
        draws: (B,) in [0, 1), decides which random voxel.
        is_centred: (B,) bool, which get the evaluator's click.

    Returns:
        Points (B, 1, 3) float in (z, y, x) and labels (B, 1); a random voxel where all are right.
    """
    points, labels = random_error_click(pred, truth, draws)
    if truth.device.type in ON_HOST:
        for i in is_centred.nonzero()[:, 0].tolist():
            click = largest_error_click(truth[i, 0].numpy(), pred[i, 0].numpy())
            if click is not None:
                points[i, 0] = torch.tensor(click.point, dtype=points.dtype)
                labels[i, 0] = int(click.is_foreground)
        return points, labels
    centres, kinds = centre_clicks(pred, truth)
    is_used = is_centred[:, None] & (kinds >= 0)
    return torch.where(is_used[..., None], centres, points), torch.where(is_used, kinds, labels)


def largest_components(masks: Tensor) -> Tensor:
    """The largest 26-connected component of each mask; of equals, the one that begins first.

    Each voxel points at one of its component with a lower index, at last at its first one. In a
    round the voxel that a component points at is hooked to the lowest neighbour of the component,
    then pointers are shortened (after Shiloach and Vishkin, Journal of Algorithms, 1982).

    Args:
        masks: (B, S, S, S) bool, with at most 2^24 voxels each.

    Returns:
        (B, S, S, S) bool, empty where the mask is.
    """
    voxels = masks[0].numel()  # also what all that is in no component points at
    flat = F.pad(masks.flatten(1), (0, 1))
    index = torch.arange(voxels + 1, device=masks.device)
    root = torch.where(flat, index, voxels)
    for _ in range(HOOKS):
        # Floats hold these integers, and are what GPUs pool.
        volume = root[:, :-1].view(masks.shape).float()
        lowest = -F.max_pool3d(-volume[:, None], kernel_size=3, stride=1, padding=1)
        neighbour = torch.where(flat[:, :-1], lowest.flatten(1).long(), voxels)
        neighbour = F.pad(neighbour, (0, 1), value=voxels)
        root = root.scatter_reduce(1, root, neighbour, "amin")
        for _ in range(JUMPS):
            root = root.gather(1, root)
    counts = torch.zeros_like(root).scatter_add_(1, root, flat.long())
    # argmax need not return the first of equals on a GPU; this key has none.
    largest = (counts * (voxels + 1) + (voxels - index)).argmax(dim=1, keepdim=True)
    return ((root == largest) & flat)[:, :-1].view(masks.shape)


def squared_depth(masks: Tensor, reach: int | None = None) -> Tensor:
    """Squared distance in voxels of each voxel to the nearest one outside of its mask.

    By minima of parabolas along an axis after the other (after Saito and Toriwaki, Pattern
    Recognition, 1994).

    Args:
        masks: (B, S, S, S) bool, S at most 255.
        reach: None: what lies beyond the volume is outside. Else it is nothing, and distances of
            more than `reach` voxels are not exact, but at least that.

    Returns:
        (B, S, S, S) int16, 0 outside.
    """
    size, far = masks.shape[-1], torch.iinfo(torch.int16).max
    at = torch.arange(1, size + 1, device=masks.device, dtype=torch.int16)
    to_border = torch.minimum(at, size + 1 - at) ** 2
    depth = torch.where(masks, far, 0).to(torch.int16)
    for axis in (1, 2, 3):
        before = depth
        depth = depth.clone()
        if reach is None:  # then the border is no farther than half of the side
            depth = torch.minimum(depth, to_border.view([-1 if i == axis else 1 for i in range(4)]))
        for shift in range(1, (size + 1) // 2 if reach is None else min(reach + 1, size)):
            near = before.clamp(max=far - shift**2) + shift**2
            length = size - shift
            for first, other in ((0, shift), (shift, 0)):
                part = depth.narrow(axis, first, length)
                torch.minimum(part, near.narrow(axis, other, length), out=part)
    return depth


def _nth_voxel(masks: Tensor, rank: Tensor) -> Tensor:
    """(B, S, S, S) bool and (B,) -> (B, 3), the rank-th True voxel (z, y, x), from 0 on."""
    planes = masks.flatten(2)
    counts = planes.count_nonzero(dim=2)
    until = counts.cumsum(dim=1)  # voxels up to each plane, with it
    rank = rank[:, None]
    z = torch.searchsorted(until, rank, right=True).clamp(max=masks.shape[1] - 1)
    plane = planes.gather(1, z[..., None].expand(-1, -1, planes.shape[2]))[:, 0]
    rank = rank - (until - counts).gather(1, z)
    index = torch.searchsorted(plane.cumsum(dim=1), rank, right=True)
    index = index.clamp(max=planes.shape[2] - 1)  # of an empty mask
    size = masks.shape[-1]
    return torch.cat([z, index // size, index % size], dim=1)


def _click_on(voxels: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3) voxels (z, y, x) -> points (B, 1, 3) float and labels (B, 1), 1 in the truth."""
    size = truth.shape[-1]
    z, y, x = voxels.unbind(dim=1)
    labels = truth[:, 0].flatten(1).gather(1, ((z * size + y) * size + x)[:, None])
    return voxels[:, None].float(), labels.long()


@lru_cache
def _random_bits(device: torch.device) -> Tensor:
    """(64,) the first 32-bit numbers of the evaluator's generator, int64."""
    generator = np.random.RandomState(CLICK_SEED)
    bits = [generator.randint(0, 2**32, dtype=np.uint32) for _ in range(64)]
    return torch.tensor(bits, dtype=torch.int64, device=device)


def _choice(counts: Tensor) -> Tensor:
    """(B,) -> (B,), what RandomState(CLICK_SEED).choice returns for each count; 0 for a count of 0.

    NumPy takes the first of its numbers that is below the count, of as many low bits of each as the
    count - 1 has; more than half of them are, so that 64 are enough.
    """
    highest = (counts - 1).clamp(min=0)
    mask = highest
    for shift in (1, 2, 4, 8, 16):  # all bits below the highest one
        mask = mask | (mask >> shift)
    numbers = _random_bits(counts.device) & mask[:, None]
    is_low = numbers <= highest[:, None]
    is_first = is_low & (is_low.cumsum(dim=1) == 1)
    return (numbers * is_first).sum(dim=1)
