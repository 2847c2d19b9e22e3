"""Volumes and networks for the tests: small, anisotropic, all sides different."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from seeded import published_weights, randomise
from segment_anything import Sam3D, sam_model_registry3D
from utils.inference.checkpoint import Checkpoint, build_model

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

TINY = dict(
    img_size=32,
    patch_size=8,
    embed_dim=48,
    depth=2,
    num_heads=3,
    global_attn_indexes=(1,),
    prompt_embed_dim=48,
    decoder_num_heads=2,
    decoder_mlp_dim=32,
)
TINY_HYBRID = dict(img_size=32, dims=(8, 12, 16), encoder_depth=1, decoder_depth=1, num_heads=2)
SHAPE = (10, 14, 18)  # (z, y, x)
SPACING = (3.0, 1.0, 0.5)  # mm, (z, y, x)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data that is not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder shared/ beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def tiny_model() -> Sam3D:
    return randomise(sam_model_registry3D["vit_b_ori"](**TINY))


@pytest.fixture(scope="session")
def tiny_hybrid() -> Sam3D:
    """Random weights, whose masks follow image and prompts."""
    return randomise(sam_model_registry3D["hybrid_s"](**TINY_HYBRID))


@pytest.fixture(scope="session")
def finding_hybrid() -> Sam3D:
    """One with random weights that finds something."""
    torch.manual_seed(3)
    network = sam_model_registry3D["hybrid_s"](**TINY_HYBRID).eval()
    with torch.no_grad():
        network.mask_decoder.mask_head[-1].bias += 0.5
    return network


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tiny_model) -> Path:
    """Random weights: proves plumbing only."""
    path = tmp_path_factory.mktemp("ckpt") / "tiny.pth"
    torch.save({"model_state_dict": tiny_model.state_dict(), "model_args": TINY}, path)
    return path


@pytest.fixture(scope="session")
def seeded_model() -> Sam3D:
    """The full-size network with the weights of the golden files."""
    return build_model(Checkpoint(Path("seeded"), published_weights()))


def inclusive_box(start: tuple[int, int, int], stop: tuple[int, int, int]) -> dict[str, int]:
    """A half-open box in (z, y, x) as the challenge stores it."""
    bounds = {"z_min": start[0], "z_max": stop[0] - 1, "z_mid": (start[0] + stop[0] - 1) // 2}
    for axis, low, high in zip("yx", start[1:], stop[1:], strict=True):
        bounds |= {f"z_mid_{axis}_min": low, f"z_mid_{axis}_max": high - 1}
    return bounds


def as_objects(entries: list) -> np.ndarray:
    """A 1-D object array with one entry per object."""
    array = np.empty(len(entries), object)
    array[:] = entries
    return array


def case_arrays(**changes) -> dict[str, np.ndarray]:
    """A valid case of two objects with boxes; a change to None leaves the key out."""
    rng = np.random.default_rng(0)
    arrays = {
        "imgs": rng.integers(0, 256, SHAPE, np.uint8),
        "spacing": np.array(SPACING[::-1]),  # stored (x, y, z)
        "boxes": as_objects(
            [inclusive_box((2, 3, 4), (7, 9, 11)), inclusive_box((0, 0, 9), (3, 14, 18))]
        ),
    }
    arrays |= changes
    return {key: value for key, value in arrays.items() if value is not None}


@pytest.fixture
def write_npz(tmp_path) -> Callable[..., Path]:
    """Writes a case with changes into a fresh inputs folder."""

    def write(name: str = "case.npz", **changes) -> Path:
        path = tmp_path / "inputs" / name
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **case_arrays(**changes))
        return path

    return write
