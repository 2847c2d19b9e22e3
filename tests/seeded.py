"""Deterministic weights and inputs: the same numbers on every machine, for golden values.

The golden files in tests/data were recorded from the original code with these numbers.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"


def generator(name: str, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + 1_000_003 * seed))


def seeded_tensor(name: str, shape: list[int], seed: int = 0) -> Tensor:
    """A float32 tensor drawn from its name and shape; none is left at zeros or ones.

    Relative position tables, biases and norms start at zeros and ones, where they would hide a
    mistake.
    """
    x = generator(name, seed).standard_normal(shape, dtype=np.float32)
    if "positional_encoding_gaussian_matrix" in name:
        scale = 1.0
    elif name.endswith(("rel_pos_d", "rel_pos_h", "rel_pos_w")):
        scale = 0.3
    elif name.endswith("pos_embed") or "tokens" in name or "token." in name:
        scale = 0.5
    elif "embed" in name and "patch" not in name:
        scale = 0.5
    elif len(shape) == 1:
        offset = 1.0 if name.endswith("weight") else 0.0
        return torch.from_numpy(np.float32(offset) + np.float32(0.2) * x)
    else:
        return torch.from_numpy((x / np.sqrt(np.prod(shape[1:]))).astype(np.float32))
    return torch.from_numpy(np.float32(scale) * x)


def published_shapes() -> dict[str, list[int]]:
    """Name and shape of every tensor of the published `vit_b_ori` checkpoint."""
    entries = json.loads((DATA / "checkpoint_manifest.json").read_text())
    return {entry["name"]: entry["shape"] for entry in entries}


def published_weights(seed: int = 0) -> dict[str, Tensor]:
    """A whole published checkpoint, 100.5 M seeded values."""
    return {name: seeded_tensor(name, shape, seed) for name, shape in published_shapes().items()}


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Put seeded values into every tensor of a module of any size."""
    state = module.state_dict()
    module.load_state_dict(
        {name: seeded_tensor(name, list(value.shape), seed) for name, value in state.items()}
    )
    return module.eval()


def seeded_roi(seed: int, size: int = 128) -> Tensor:
    """A z-normalised (1, 1, size, size, size) input with smooth structure and noise."""
    g = generator("roi", seed)
    coarse = g.standard_normal((size // 16,) * 3).astype(np.float32)
    smooth = np.kron(coarse, np.ones((16, 16, 16), np.float32))
    x = smooth + 0.5 * g.standard_normal((size,) * 3, dtype=np.float32)
    return torch.from_numpy(((x - x.mean()) / x.std())[None, None].astype(np.float32))
