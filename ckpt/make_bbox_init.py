"""Make a checkpoint with box embeddings from one that was published before boxes.

    python ckpt/make_bbox_init.py ckpt/sam_med3d_turbo.pth ckpt/sam_med3d_turbo_bbox_init.pth

It is what fine-tuning with boxes starts from: the embeddings of the two corners start at zero.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="checkpoint with 2 point embeddings")
    parser.add_argument("target", type=Path, help="checkpoint with 4, a new file")
    return parser


def main(args: argparse.Namespace) -> int:
    import torch

    from utils.formats.atomic import atomic_write
    from utils.inference.checkpoint import CheckpointError, build_model, read_checkpoint

    try:
        if args.target.exists():
            raise FileExistsError(f"{args.target}: exists, expected the name of a new file")
        checkpoint = read_checkpoint(args.source)
        if not checkpoint.notices:
            raise CheckpointError(f"{args.source.name}: expected 2 point embeddings, got 4")
        build_model(checkpoint)  # checks every name and shape
        content = {
            "model_state_dict": checkpoint.state_dict,
            "model_type": checkpoint.model_type,
            "model_args": checkpoint.model_args,
        }
        with atomic_write(args.target) as file:
            torch.save(content, file)
    except (OSError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{args.target}: {len(checkpoint.state_dict)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
