"""Image encoder against medim's: seconds, peak memory and difference, in one run.

    python bench/bench_encoder.py --device cpu
    python bench/bench_encoder.py --device cuda

Weights are random, relative position tables included. Each network is run in a process of its own,
so that peaks do not mix.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import (
    build_seeded,
    build_seeded_medim,
    in_new_process,
    network_parser,
    origin,
    print_header,
    print_row,
    time_and_memory,
)

NETWORKS = {"medim": build_seeded_medim, "ours": build_seeded}
ROWS = {  # batch size, precision
    "cpu": [(1, "fp32")],
    "cuda": [(1, "fp32"), (8, "fp32"), (1, "bf16"), (8, "bf16")],
}
WARM_UP = 2


def get_args_parser() -> argparse.ArgumentParser:
    return network_parser(__doc__, repeats=5)


def measure(
    network: str, batch: int, precision: str, device: str, repeats: int, is_tiny: bool
) -> tuple[float, float, np.ndarray]:
    """Seconds, GB beyond the weights, and the float32 embedding (B, C, G, G, G)."""
    encoder = NETWORKS[network](is_tiny).image_encoder.to(device)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 1, *[encoder.img_size] * 3, generator=generator).to(device)
    is_cast = precision == "bf16"
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=is_cast):
        seconds, memory, embedding = time_and_memory(lambda: encoder(x), device, WARM_UP, repeats)
    return seconds, memory, embedding.float().cpu().numpy()


def main(args: argparse.Namespace) -> None:
    print(f"{origin(args.device)}\n")
    names = "medim", "ours", "faster", "medim peak", "ours peak", "max abs diff"
    print_header("batch", "precision", *names)
    for batch, precision in ROWS[args.device]:
        how = batch, precision, args.device, args.repeats, args.tiny
        (their_seconds, their_memory, theirs), (seconds, memory, ours) = (
            in_new_process(measure, network, *how) for network in NETWORKS
        )
        print_row(
            batch,
            precision,
            f"{their_seconds:.3f} s",
            f"{seconds:.3f} s",
            f"{their_seconds / seconds:.1f} x",
            f"+{their_memory:.2f} GB",
            f"+{memory:.2f} GB",
            f"{np.abs(theirs - ours).max():.1e}",
        )


if __name__ == "__main__":
    main(get_args_parser().parse_args())
