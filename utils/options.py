"""Options that scripts share: types of arguments, the network and how it is run."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segment_anything import __version__

POLICIES = ("baseline", "adaptive")


def int_from(low: int, high: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected {low}..{high}, got {text}")
        return int(text)

    return integer


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
        help="seed of the points that baseline draws",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="fp32 is exact, on a GPU too (no TF32); bf16 and fp16 are faster there",
    )
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
