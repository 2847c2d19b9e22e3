"""Weights for inference out of a checkpoint of train.py: float16, without the optimizer.

    python ckpt/export.py work_dir/small/sam_model_latest.pth ckpt/sam_med3d_small.safetensors

The file says which network it is and how it wants its prompts, as the checkpoint does, and the
same weights make the same bytes.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="any checkpoint that infer.py reads")
    parser.add_argument("target", type=Path, help="a new .safetensors file")
    return parser


def main(args: argparse.Namespace) -> int:
    import hashlib

    import torch
    from safetensors.torch import save

    from utils.formats.atomic import atomic_write
    from utils.inference.checkpoint import METADATA, CheckpointError, build_model, read_checkpoint

    try:
        if args.target.exists():
            raise FileExistsError(f"{args.target}: exists, expected the name of a new file")
        if args.target.suffix != ".safetensors":
            raise ValueError(f"{args.target}: expected the name of a .safetensors file")
        checkpoint = read_checkpoint(args.source)
        build_model(checkpoint)  # checks every name and shape
        weights = {k: v.to(torch.float16).contiguous() for k, v in checkpoint.state_dict.items()}
        if not all(v.isfinite().all() for v in weights.values()):
            raise CheckpointError(f"{args.source.name}: expected weights within float16's range")
        keys = ("model_type", "model_args", "policy", "policy_args")
        about = json.dumps({key: getattr(checkpoint, key) for key in keys}, sort_keys=True)
        content = save(weights, metadata={METADATA: about})
        with atomic_write(args.target) as file:
            file.write(content)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    digest = hashlib.sha256(content).hexdigest()
    print(f"{args.target}: {len(weights)} tensors, {len(content) / 1e6:.1f} MB, sha256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
