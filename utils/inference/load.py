"""The network and the policy that the options name, ready to segment cases."""

import argparse
from pathlib import Path

from segment_anything import Sam3D
from utils.inference.checkpoint import (
    CheckpointError,
    adaptive_settings,
    build_model,
    read_checkpoint,
)
from utils.inference.medim_backend import build_medim_model
from utils.inference.method import Segmenter, make_segmenter
from utils.inference.published import SMALL, find_checkpoint
from utils.options import POLICIES
from utils.runtime.device import choose_device

CKPT_DIR = Path(__file__).resolve().parents[2] / "ckpt"
FETCH = "python ckpt/download.py sam_med3d_turbo_cvpr_coreset"
NO_CHECKPOINT = f"""\
no checkpoint: give one with --checkpoint FILE, or fetch a published one (402 MB) with
    {FETCH}"""


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


def load_model(args: argparse.Namespace) -> tuple[Sam3D, Segmenter]:
    """The network on its device, and the function that segments a case with it, as options say.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: The checkpoint or the device can't be used.
    """
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
    segment = make_segmenter(model, policy, settings, args.seed, args.batch_size, args.precision)
    return model, segment
