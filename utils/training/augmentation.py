"""Augmentation of the adaptive recipe: images as of other scanners, and objects of other shapes.

TorchIO's transforms, on ROIs of S voxels a side; an identity affine matrix makes their mm voxels.
What is drawn follows from a generator alone, and torch's own random state stays as it was.
"""

import numpy as np
import torch
import torchio as tio
from torch import Tensor

INVERTED = 0.15  # of the samples, in contrast
# The others by `p`, the share of the samples that get them; on intensities of 0..1.
INTENSITY = tio.Compose(
    [
        tio.RandomGamma(log_gamma=0.5, p=0.4, copy=False),
        tio.RandomBiasField(coefficients=0.2, order=2, p=0.15, copy=False),
        tio.RandomBlur(std=(0.3, 1.2), p=0.15, copy=False),
        tio.RandomAnisotropy(downsampling=(1.5, 4), p=0.1, copy=False),
        tio.RandomMotion(degrees=5, translation=3, num_transforms=1, p=0.04, copy=False),
        tio.RandomGhosting(num_ghosts=(3, 7), intensity=(0.2, 0.6), p=0.04, copy=False),
        tio.RandomNoise(std=(0.02, 0.1), p=0.3, copy=False),
    ],
    copy=False,
)
# One of them, by the weights: bending takes 15 times as long as turning and scaling.
SPATIAL = tio.OneOf(
    {
        tio.RandomAffine(scales=0.1, degrees=15, copy=False): 0.9,
        tio.RandomElasticDeformation(num_control_points=7, max_displacement=4, copy=False): 0.1,
    },
    copy=False,
)


def change_intensities(image: Tensor, rng: np.random.Generator) -> Tensor:
    """An (S, S, S) image of 0..255, above 0 as another scanner or modality might show it.

    What is 0 stays so: it lies outside the body or the volume.
    """
    is_inside = image > 0
    if rng.random() < INVERTED:
        image = 255 - image
    (changed,) = _applied(INTENSITY, tio.Subject(image=_scalar(image / 255)), rng)
    return torch.where(is_inside, 255 * changed.clamp(min=1e-5), 0.0)


def deform(
    image: Tensor, truth: np.ndarray, margin: int, rng: np.random.Generator
) -> tuple[Tensor, np.ndarray]:
    """Turn and scale an image and its truth, or bend them, by the same field.

    Args:
        image: (N, N, N), interpolated linearly.
        truth: (N, N, N) bool; takes the nearest voxel.
        margin: Voxels at each side that are dropped afterwards, since what comes in from beyond
            the image is 0.
        rng: Decides the field.

    Returns:
        Both, with sides of N - 2 * margin.
    """
    label = tio.LabelMap(tensor=torch.from_numpy(truth)[None].to(torch.uint8))
    subject = tio.Subject(image=_scalar(image), truth=label)
    image, mask = _applied(SPATIAL, subject, rng)
    inner = (slice(margin, len(truth) - margin),) * 3
    return image[inner], mask[inner].numpy() > 0


def _scalar(image: Tensor) -> tio.ScalarImage:
    """(S, S, S) -> an image of one channel; the axes' names do not matter here."""
    return tio.ScalarImage(tensor=image[None].clone())


def _applied(
    transform: tio.Transform, subject: tio.Subject, rng: np.random.Generator
) -> list[Tensor]:
    """The images of the transformed subject, (S, S, S) each."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**31)))
        changed = transform(subject)
    return [image.data[0] for image in changed.get_images(intensity_only=False)]
