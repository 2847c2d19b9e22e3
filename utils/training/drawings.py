"""Scribbles and lassos as people draw them, in a slice of an error or of an object.

Operations on tensors of many samples at once; shapes do not depend on masks. Slices lie across any
axis; planes are (B, S, S) with the other two axes in their order.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything.modeling.hybrid3D import DRAWING_CHANNELS

SPREADS = 48  # voxels that a part of a slice reaches from the voxel that it is found at
LENGTHS = (0.5, 1.0)  # of a scribble, over that of its region
TREMOR = 0.04  # of a scribble, sideways, over the side of the ROI
LASSO_SIGMA = 1.5  # voxels by which an outline is smoothed
LASSO_LEVELS = (0.15, 0.45)  # of the smoothed region, at which its outline is drawn: outside of it
DRAWS = 5  # numbers in [0, 1) that decide about a drawing
LASSOED, SCRIBBLED = 0.1, 0.15  # of the corrections, where the network takes drawings


def slice_through(volumes: Tensor, at: Tensor, axis: Tensor) -> Tensor:
    """The slice of each volume across an axis through a voxel.

    Args:
        volumes: (B, S, S, S) bool.
        at: (B, 3) int64, (z, y, x).
        axis: (B,) int64, 0 to 2.

    Returns:
        (B, S, S) bool.
    """
    planes = volumes.new_zeros(volumes.shape[:3])
    for i in range(3):
        shape = list(volumes.shape)
        shape[1 + i] = 1
        index = at[:, i].view(-1, 1, 1, 1).expand(shape)
        plane = volumes.gather(1 + i, index).squeeze(1 + i)
        planes = torch.where((axis == i)[:, None, None], plane, planes)
    return planes


def into_slice(planes: Tensor, at: Tensor, axis: Tensor) -> Tensor:
    """The inverse of `slice_through`: (B, S, S) bool -> (B, S, S, S) bool, False elsewhere."""
    index = torch.arange(planes.shape[-1], device=planes.device)
    volumes = planes.new_zeros(*planes.shape, planes.shape[-1])
    for i in range(3):
        is_there = (index == at[:, i, None]) & (axis == i)[:, None]
        volumes |= is_there.movedim(1, -1).view(len(planes), *_along(i)) & planes.unsqueeze(1 + i)
    return volumes


def _along(axis: int) -> list[int]:
    return [-1 if i == axis else 1 for i in range(3)]


def part_at(planes: Tensor, at: Tensor) -> Tensor:
    """The connected part of each (B, S, S) bool plane round a pixel (B, 2); empty if it is off."""
    size = planes.shape[-1]
    index = torch.arange(size, device=planes.device)
    rows, columns = (index == at[:, i, None] for i in range(2))
    part = rows[:, :, None] & columns[:, None, :] & planes
    for _ in range(SPREADS):
        part = (F.max_pool2d(part[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0) & planes
    return part


def scribble(regions: Tensor, draws: Tensor) -> Tensor:
    """A line along the middle of each region, with a hand's tremor.

    Args:
        regions: (B, S, S) bool.
        draws: (B, DRAWS) in [0, 1).

    Returns:
        (B, S, S) bool, within the region; empty where that is.
    """
    size = regions.shape[-1]
    is_wide = regions.any(dim=1).sum(dim=1) > regions.any(dim=2).sum(dim=1)
    upright = torch.where(is_wide[:, None, None], regions.transpose(1, 2), regions)
    index = torch.arange(size, device=regions.device)
    counts = upright.sum(dim=2)
    middles = (upright * index).sum(dim=2) / counts.clamp(min=1)
    is_row = counts > 0
    smooth, weight = (
        F.avg_pool1d(x[:, None], 5, stride=1, padding=2)[:, 0]
        for x in (middles * is_row, is_row.float())
    )
    middles = smooth / weight.clamp(min=1e-3)
    first, length, amplitude, *phases = draws.float().unbind(dim=1)
    for times, phase in zip((2.0, 5.0), phases, strict=True):
        wave = torch.sin(2 * math.pi * (times * index / size + phase[:, None]))
        middles = middles + TREMOR * size / 2 * amplitude[:, None] * wave
    length = LENGTHS[0] + (LENGTHS[1] - LENGTHS[0]) * length
    first = first * (1 - length)
    share = (is_row.cumsum(dim=1) - 0.5) / is_row.sum(dim=1, keepdim=True).clamp(min=1)
    is_drawn = is_row & (share >= first[:, None]) & (share <= (first + length)[:, None])
    # As wide as the step to the next row, so that the line has no gap.
    steps = F.pad(middles.diff(dim=1).abs(), (0, 1))
    line = (index - middles[..., None]).abs() <= 0.5 + (steps / 2).clamp(max=size)[..., None]
    line = line & is_drawn[..., None] & upright
    line = torch.where(line.flatten(1).any(dim=1)[:, None, None], line, upright)
    return torch.where(is_wide[:, None, None], line.transpose(1, 2), line)


def lasso(regions: Tensor, draws: Tensor) -> Tensor:
    """Each region within an outline drawn roughly round it, smoother and a little wider.

    Args:
        regions: (B, S, S) bool.
        draws: (B, DRAWS) in [0, 1).

    Returns:
        (B, S, S) bool, filled; empty where the region is.
    """
    reach = math.ceil(3 * LASSO_SIGMA)
    taps = torch.arange(-reach, reach + 1, device=regions.device)
    kernel = torch.exp(-0.5 * (taps / LASSO_SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    smooth = F.conv2d(regions[:, None].float(), kernel.view(1, 1, -1, 1), padding=(reach, 0))
    smooth = F.conv2d(smooth, kernel.view(1, 1, 1, -1), padding=(0, reach))[:, 0]
    low, high = LASSO_LEVELS
    level = low + (high - low) * draws[:, 0].float()
    drawn = smooth > level[:, None, None]
    # What is thinner than the outline is wide is drawn as it is.
    return torch.where(drawn.flatten(1).any(dim=1)[:, None, None], drawn, regions)


def drawn_corrections(
    pred: Tensor, truth: Tensor, points: Tensor, labels: Tensor, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """Drawings in place of some clicks on errors, of the part of the error round the click.

    Args:
        pred: (B, 1, S, S, S) bool.
        truth: (B, 1, S, S, S) bool.
        points: (B, 1, 3), the clicks, (z, y, x).
        labels: (B, 1), 1 foreground, 0 background.
        draws: (B, 2 + DRAWS) in [0, 1), decide what is drawn, across which axis, and how.

    Returns:
        (B, DRAWING_CHANNELS, S/2, S/2, S/2) of 0 and 1, and (B,) bool: which samples have one.
    """
    kind, axis = draws[:, 0], (3 * draws[:, 1]).long()
    is_lasso, is_scribble = kind < LASSOED, (kind >= LASSOED) & (kind < LASSOED + SCRIBBLED)
    is_foreground = labels[:, 0] == 1
    errors = (pred != truth) & (truth == is_foreground.view(-1, 1, 1, 1, 1))
    at = points[:, 0].long()
    others = torch.tensor([[1, 2], [0, 2], [0, 1]], device=at.device)[axis]
    part = part_at(slice_through(errors[:, 0], at, axis), at.gather(1, others))
    how = draws[:, 2:]
    drawn = torch.where(is_lasso[:, None, None], lasso(part, how), scribble(part, how))
    is_drawn = (is_lasso | is_scribble) & part.flatten(1).any(dim=1)
    volume = F.max_pool3d(into_slice(drawn, at, axis)[:, None].float(), kernel_size=2)
    channel = F.one_hot(2 * is_lasso.long() + (~is_foreground).long(), DRAWING_CHANNELS)
    return volume * (channel * is_drawn[:, None]).view(*channel.shape, 1, 1, 1), is_drawn
