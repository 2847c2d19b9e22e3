"""Options shared by the scripts: the network, how it is run, grey levels; and loading it."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segment_anything import __version__
from utils.inference.published import SMALL, find_checkpoint

# torch is imported where it is used, so that --help and messages about options come at once.
if TYPE_CHECKING:
    import numpy as np

    from segment_anything import Sam3D
    from utils.formats.case import Case

POLICIES = ("baseline", "adaptive")
OPTIMIZERS = ("adamw", "muon")
SCHEDULERS = ("multisteplr", "steplr", "coswarm", "linear")
# As the challenge prepares CT: (level, width) in HU.
CT_WINDOWS = {
    "abdomen": (40.0, 400.0),
    "lung": (-160.0, 1500.0),
    "brain": (40.0, 80.0),
    "bone": (400.0, 1800.0),
}
SCAN_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
CKPT_DIR = Path(__file__).resolve().parents[1] / "ckpt"
FETCH = "python ckpt/download.py sam_med3d_turbo_cvpr_coreset"
NO_CHECKPOINT = f"""\
no checkpoint: give one with --checkpoint FILE, or fetch a published one (402 MB) with
    {FETCH}"""


def int_from(low: int, high: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected {low}..{high}, got {text}")
        return int(text)

    return integer


def parse_window(text: str) -> tuple[float, float]:
    """A name of CT_WINDOWS, or LEVEL,WIDTH -> level and width in HU.

    Raises:
        ValueError: It is neither.
    """
    if text in CT_WINDOWS:
        return CT_WINDOWS[text]
    try:
        level, width = map(float, text.split(","))
    except ValueError:
        level, width = math.nan, math.nan
    if not (math.isfinite(level) and 0 < width < math.inf):
        raise ValueError(f"expected {', '.join(CT_WINDOWS)} or LEVEL,WIDTH in HU, got {text!r}")
    return level, width


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action="version", version=f"SAM-Med3D {__version__}")
    parser.add_argument(
        "--checkpoint", type=Path, help="default: the best of those found in ckpt/ (see README)"
    )
    parser.add_argument(
        "--policy",
        choices=("auto", *POLICIES),
        default="auto",
        help="how prompts are used: baseline as published, adaptive all of them, on a ROI as large "
        "as the object; auto: as the checkpoint says, else baseline",
    )
    parser.add_argument(
        "--seed",
        type=int_from(0, 2**32 - 1),
        default=0,
        help="of the points that baseline draws",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument(
        "--batch-size",
        type=int_from(1, 1024),
        help="objects that go through the network together; default: 8 on a GPU, 1 on a CPU",
    )
    parser.add_argument(
        "--backend",
        choices=("local", "medim"),
        default="local",
        help="network: this repository's, or that of the medim package, to compare with",
    )


def model_defaults() -> dict[str, Any]:
    """The model options by the names that they have once parsed."""
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    return vars(parser.parse_args([]))


def checkpoint_path(args: argparse.Namespace) -> Path:
    """The checkpoint that the options name, or the best there is.

    Raises:
        FileNotFoundError: There is none.
    """
    path = args.checkpoint or find_checkpoint(CKPT_DIR)
    if path is None:
        raise FileNotFoundError(NO_CHECKPOINT)
    if not path.is_file():
        raise FileNotFoundError(f"--checkpoint {path}: no such file")
    return path


def load_model(
    args: argparse.Namespace,
) -> tuple["Sam3D", Callable[["Case"], "np.ndarray"]]:
    """The network on its device, and what segments a case with it, as the options say.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: The checkpoint or the device can't be used.
    """
    from utils.inference.checkpoint import (
        CheckpointError,
        adaptive_settings,
        build_model,
        read_checkpoint,
    )
    from utils.inference.method import make_segmenter
    from utils.runtime.device import choose_device

    path = checkpoint_path(args)
    checkpoint = read_checkpoint(path)
    device = choose_device(args.device)
    policy = checkpoint.policy if args.policy == "auto" else args.policy
    if policy not in POLICIES:
        raise CheckpointError(f"{path.name}: expected a policy of {POLICIES}, got {policy!r}")
    settings = adaptive_settings(checkpoint) if policy == "adaptive" else None
    if settings and args.backend == "medim":
        raise ValueError("--backend medim: has no box corners, expected --policy baseline")
    if args.backend == "medim":
        from utils.inference.medim_backend import build_medim_model

        model = build_medim_model(checkpoint)
    else:
        model = build_model(checkpoint)
    model = model.to(device)
    if args.checkpoint is None and path.name == SMALL:
        print(
            f"{SMALL}: the small network of this repository; for a published one (402 MB): {FETCH}"
        )
    print(f"{path.name}: {args.backend} network, {policy} policy, {args.precision} on {device}")
    for notice in checkpoint.notices:
        print(f"{path.name}: {notice}")
    method = make_segmenter(model, policy, settings, args.seed, args.batch_size, args.precision)
    return model, method
