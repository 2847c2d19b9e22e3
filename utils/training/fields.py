"""Random numbers, and volumes of them, on whatever device."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class RandomFields:
    """Random numbers, and fields of them on the cube."""

    def __init__(self, seed: int, side: int, device: torch.device) -> None:
        self.side, self.device = side, device
        self.numbers = np.random.default_rng(seed)
        self.generator = torch.Generator(device).manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return float(self.numbers.uniform(low, high))

    def log_uniform(self, low: float, high: float) -> float:
        return float(np.exp(self.numbers.uniform(np.log(low), np.log(high))))

    def integer(self, low: int, high: int) -> int:
        """Both are possible."""
        return int(self.numbers.integers(low, high, endpoint=True))

    def happens(self, probability: float) -> bool:
        return bool(self.numbers.random() < probability)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def vector(self, low: float, high: float, *shape: int) -> Tensor:
        numbers = self.numbers.uniform(low, high, shape or 3)
        return torch.from_numpy(numbers).float().to(self.device)

    def smooth(self, cells: int, channels: int = 1) -> Tensor:
        """(channels, N, N, N) of about unit variance that changes over 1 / cells of the side.

        A cubic B-spline with random coefficients.
        """
        knots = torch.arange(-1, cells + 2, device=self.device)
        along = torch.linspace(0, cells, self.side, device=self.device)
        t = (along[:, None] - knots).abs()
        near, far = 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6
        basis = torch.where(t < 1, near, far)  # (N, cells + 3)
        basis = basis / basis.square().sum(dim=1, keepdim=True).sqrt()
        field = self.normal(channels, *[cells + 3] * 3)
        for _ in range(3):  # one axis at a time, which comes last
            field = torch.tensordot(field, basis, dims=([1], [1]))
        return field

    def rotation(self) -> Tensor:
        """(3, 3), uniform."""
        q, r = np.linalg.qr(self.numbers.standard_normal((3, 3)))
        return torch.from_numpy(q * np.sign(np.diag(r))).float().to(self.device)


def blurred(image: Tensor, sigmas: Sequence[float]) -> Tensor:
    """(N, N, N) through a Gaussian of a sigma per axis."""
    x = image[None, None]
    for axis, sigma in enumerate(sigmas):
        reach = int(np.ceil(3 * sigma))
        taps = torch.arange(-reach, reach + 1, device=image.device)
        kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
        shape, padding = [1, 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = len(taps)
        padding[4 - 2 * axis : 6 - 2 * axis] = [reach, reach]
        padded = F.pad(x, padding, mode="replicate")
        x = F.conv3d(padded, (kernel / kernel.sum()).view(shape))
    return x[0, 0]
