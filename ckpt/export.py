"""The weights of a checkpoint, without the optimizer: small to infer from, or whole to train from.

    python ckpt/export.py work_dir/small/sam_model_latest.pth ckpt/sam_med3d_small.safetensors
    python ckpt/export.py ckpt/sam_med3d_turbo.pth ckpt/sam_med3d_turbo_bbox_init.pth

A .safetensors file holds float16, and the same weights make the same bytes; a .pth file holds
float32. Either says which network it is and how it wants its prompts, as the checkpoint does. One
with 2 point embeddings, published before boxes, gets those of the two corners, which start at zero.
"""

import argparse
import hashlib
import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.formats.atomic import atomic_write  # noqa: E402
from utils.inference.checkpoint import (  # noqa: E402
    METADATA,
    Checkpoint,
    CheckpointError,
    adaptive_settings,
    build_model,
    read_checkpoint,
)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="any checkpoint that infer.py reads")
    parser.add_argument("target", type=Path, help="a new .safetensors or .pth file")
    parser.add_argument(
        "--iou-line",
        type=float,
        nargs=2,
        metavar=("SLOPE", "INTERCEPT"),
        help="what makes its estimates of the IoU true, by bench/bench_quality.py",
    )
    return parser


def float16_safetensors(checkpoint: Checkpoint, about: dict[str, object]) -> bytes:
    """The weights in half precision, what they are about as metadata.

    Raises:
        CheckpointError: Weights lie beyond the range of float16.
    """
    weights = {k: v.to(torch.float16).contiguous() for k, v in checkpoint.state_dict.items()}
    if not all(v.isfinite().all() for v in weights.values()):
        raise CheckpointError(f"{checkpoint.path.name}: expected weights within float16's range")
    return save(weights, metadata={METADATA: json.dumps(about, sort_keys=True)})


def float32_pth(checkpoint: Checkpoint, about: dict[str, object]) -> bytes:
    """The weights as they are, in the layout of the published files."""
    buffer = io.BytesIO()
    torch.save({"model_state_dict": checkpoint.state_dict, **about}, buffer)
    return buffer.getvalue()


def main(args: argparse.Namespace) -> int:
    writers = {".safetensors": float16_safetensors, ".pth": float32_pth}
    try:
        if args.target.exists():
            raise FileExistsError(f"{args.target}: exists, expected the name of a new file")
        if args.target.suffix not in writers:
            raise ValueError(f"{args.target}: expected the name of a .safetensors or .pth file")
        checkpoint = read_checkpoint(args.source)
        build_model(checkpoint)  # checks every name and shape
        keys = ("model_type", "model_args", "policy", "policy_args")
        about = {key: getattr(checkpoint, key) for key in keys}
        if args.iou_line:
            slope, intercept = args.iou_line
            settings = adaptive_settings(checkpoint)
            settings = replace(settings, iou_slope=slope, iou_intercept=intercept)
            about["policy_args"] = asdict(settings)
        content = writers[args.target.suffix](checkpoint, about)
        with atomic_write(args.target) as file:
            file.write(content)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for notice in checkpoint.notices:
        print(f"{args.source.name}: {notice}")
    count, size = len(checkpoint.state_dict), len(content) / 1e6
    digest = hashlib.sha256(content).hexdigest()
    print(f"{args.target}: {count} tensors, {size:.1f} MB, sha256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
