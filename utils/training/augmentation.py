"""Augmentation of the adaptive recipe: images as of other scanners, and objects of other shapes.

On ROIs of S voxels a side, where they are; what is drawn follows from a generator alone.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.training.fields import RandomFields, blurred

if TYPE_CHECKING:
    import torchio as tio

INVERTED = 0.15  # of the samples, in contrast
MAX_ANGLE = 15.0  # degrees, about each axis
MAX_SCALE = 0.15  # as a power of e, along each axis
MAX_BEND = 0.06  # of the side, displacement of one standard deviation, over a third of the side
MAX_RIPPLE = 0.015  # the same over an eighth of it


def gamma(fields: RandomFields, image: Tensor) -> Tensor:
    return image.clamp(min=0) ** math.exp(fields.uniform(-0.5, 0.5))


def bias(fields: RandomFields, image: Tensor) -> Tensor:
    """Brighter here and darker there, as near to a coil and far from it."""
    return image * torch.exp(fields.uniform(0.05, 0.3) * fields.smooth(2)[0])


def blur(fields: RandomFields, image: Tensor) -> Tensor:
    return blurred(image, fields.numbers.uniform(0.3, 1.2, 3).tolist())


def thick_slices(fields: RandomFields, image: Tensor) -> Tensor:
    """Along an axis 1.5 to 4 times as thick."""
    axis = fields.integer(0, 2)
    size = image.shape[axis]
    along = image.movedim(axis, -1).flatten(0, 1)[None]
    thick = F.interpolate(along, size=round(size / fields.uniform(1.5, 4)), mode="linear")
    whole = F.interpolate(thick, size=size, mode="linear")[0]
    return whole.unflatten(0, (size, size)).movedim(-1, axis)


def noise(fields: RandomFields, image: Tensor) -> Tensor:
    return image + fields.uniform(0.02, 0.1) * fields.normal(*image.shape)


# In this order, each by its share of the samples, on intensities of 0..1.
INTENSITY: dict[Callable[[RandomFields, Tensor], Tensor], float] = {
    gamma: 0.4,
    bias: 0.15,
    blur: 0.15,
    thick_slices: 0.1,
    noise: 0.3,
}


def change_intensities(image: Tensor, rng: np.random.Generator) -> Tensor:
    """An (S, S, S) image of 0..255, above 0 as another scanner or modality might show it.

    What is 0 stays so: it lies outside the body or the volume.
    """
    fields = fields_of(image, rng)
    changed = image / 255
    if fields.happens(INVERTED):
        changed = 1 - changed
    for change, share in INTENSITY.items():
        if fields.happens(share):
            changed = change(fields, changed)
    return torch.where(image > 0, 255 * changed.clamp(min=1e-5), 0.0)


def spoil(image: Tensor, rng: np.random.Generator) -> Tensor:
    """An (S, S, S) image of 0..255, in the memory of the host, with an artefact of a scanner.

    TorchIO's, of the Fourier transform: it is imported here, since a GPU box may do without.
    """
    import torchio as tio

    subject = tio.Subject(image=tio.ScalarImage(tensor=image[None].clone()))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**31)))
        changed = artefacts()(subject).image.data[0]
    return torch.where(image > 0, changed.clamp(min=1e-3), 0.0)


@cache
def artefacts() -> "tio.Transform":
    """A patient who moved, or ghosts along an axis."""
    import torchio as tio

    motion = tio.RandomMotion(degrees=5, translation=3, num_transforms=1, copy=False)
    ghosting = tio.RandomGhosting(num_ghosts=(3, 7), intensity=(0.2, 0.6), copy=False)
    return tio.OneOf([motion, ghosting], copy=False)


def deform(
    image: Tensor, truth: Tensor, margin: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Turn, scale and bend an image and its truth by the same field.

    Args:
        image: (N, N, N), interpolated linearly.
        truth: (N, N, N) bool, interpolated too, and what is above one half.
        margin: Voxels at each side that are dropped afterwards, since what comes in from beyond
            the image is 0.
        rng: Decides the field.

    Returns:
        Both, with sides of N - 2 * margin.
    """
    where = field_of(fields_of(image, rng))
    size = image.shape[0] - 2 * margin
    where = where[:, margin : margin + size, margin : margin + size, margin : margin + size]
    grid = where.flip(0).movedim(0, -1)[None]  # grid_sample takes (x, y, z)
    both = torch.stack([image, truth.float()])[None]
    changed, mask = F.grid_sample(both, grid, mode="bilinear", align_corners=False)[0]
    return changed, mask > 0.5


def field_of(fields: RandomFields) -> Tensor:
    """(3, N, N, N): for each voxel the place (z, y, x) that it is taken from, in -1..1."""
    axis = (torch.arange(fields.side, device=fields.device) + 0.5) / fields.side * 2 - 1
    still = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    z, y, x = (math.radians(fields.uniform(-MAX_ANGLE, MAX_ANGLE)) for _ in range(3))
    generators = torch.tensor([[0, -x, y], [x, 0, -z], [-y, z, 0]], dtype=torch.float64)
    scales = np.exp(fields.numbers.uniform(-MAX_SCALE, MAX_SCALE, 3))
    turn = torch.linalg.matrix_exp(generators) @ torch.diag(torch.from_numpy(scales))
    where = torch.tensordot(turn.float().to(fields.device), still, dims=1)
    where = where + 2 * fields.uniform(0, MAX_BEND) * fields.smooth(3, 3)
    return where + 2 * fields.uniform(0, MAX_RIPPLE) * fields.smooth(8, 3)


def fields_of(image: Tensor, rng: np.random.Generator) -> RandomFields:
    """Random numbers for an image, on its device."""
    return RandomFields(int(rng.integers(2**63)), image.shape[0], image.device)
