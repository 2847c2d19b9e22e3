"""What benchmarks share: options, tables, networks, a case, and the taking of time and memory."""

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from medim.models.sam_med3d import build_sam3D_vit_b_ori
from torch import nn

from segment_anything import Sam3D, sam_model_registry3D

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
# The sizes of --tiny: the published architecture, and again in medim's words; the small network.
TINY: dict[str, Any] = dict(
    img_size=32,
    patch_size=8,
    embed_dim=48,
    depth=2,
    num_heads=3,
    global_attn_indexes=(0, 1),  # in windows of 14^3 tokens medim's would take seconds
    prompt_embed_dim=48,
)
TINY_MEDIM: dict[str, Any] = dict(
    image_size=32,
    vit_patch_size=8,
    encoder_embed_dim=48,
    encoder_depth=2,
    encoder_num_heads=3,
    encoder_global_attn_indexes=(0, 1),
    prompt_embed_dim=48,
)
TINY_HYBRID: dict[str, Any] = dict(
    img_size=32, dims=(8, 12, 16), encoder_depth=1, decoder_depth=1, num_heads=2
)


def bench_parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=repeats, help="timed runs; their median is shown"
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="small volumes and a tiny network: shows that the script runs, not how fast",
    )
    return parser


def network_parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """As `bench_parser`, for what runs a network."""
    parser = bench_parser(description, repeats)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


def origin(device: str) -> str:
    """Where the figures below come from: the machine, torch and the commit."""
    return f"{device_name(device)}; torch {torch.__version__}; commit {commit()}"


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo").read_text().split("model name\t: ")[1].splitlines()[0]
    return f"{cpu}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"


def commit() -> str:
    describe = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def print_header(*names: str) -> None:
    """The first two lines of a table in Markdown."""
    print_row(*names)
    print("|---" * len(names) + "|", flush=True)


def print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def size_text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def build_seeded(is_tiny: bool = False) -> Sam3D:
    """The published network with seeded weights, in eval mode; none is at its initial zeros."""
    torch.manual_seed(0)  # the positional encoding is drawn, too
    model = sam_model_registry3D["vit_b_ori"](**TINY if is_tiny else {})
    fill_seeded(model)
    return model.eval()


def build_seeded_medim(is_tiny: bool = False) -> Any:
    """medim's network in eval mode; its image encoder has the same weights as ours."""
    model = build_sam3D_vit_b_ori(**TINY_MEDIM if is_tiny else {})
    fill_seeded(model)
    return model.eval()


@torch.no_grad()
def fill_seeded(model: nn.Module) -> None:
    """Draw the parameters, in the order of their names."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if "rel_pos" in name or "pos_embed" in name:
            parameter.copy_(0.3 * noise)
        elif parameter.dim() == 1:  # norms start at 1 and 0, biases near 0
            parameter.copy_(0.1 * noise + parameter.round())
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)


def write_case(
    path: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float], objects: int
) -> None:
    """A CT-like case with boxes; shape (z, y, x), spacing (x, y, z) in mm as the file stores it."""
    rng = np.random.default_rng(0)
    image = np.empty(shape, np.uint8)
    for plane in image:
        plane[:] = rng.normal(90, 10, plane.shape)
    boxes = []
    for _ in range(objects):
        centre = [int(rng.uniform(0.25, 0.75) * n) for n in shape]
        half = [int(rng.uniform(0.03, 0.08) * n) + 2 for n in shape]
        (z0, z1), (y0, y1), (x0, x1) = (
            (max(c - h, 0), min(c + h, n - 1)) for c, h, n in zip(centre, half, shape, strict=True)
        )
        image[z0:z1, y0:y1, x0:x1] += np.uint8(rng.integers(30, 90))
        middle = dict(z_mid_y_min=y0, z_mid_y_max=y1, z_mid_x_min=x0, z_mid_x_max=x1)
        boxes.append(dict(z_min=z0, z_max=z1, z_mid=centre[0], **middle))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, imgs=image, spacing=spacing, boxes=np.array(boxes, dtype=object))


def synchronize(device: str) -> None:
    """Wait for what the GPU has been asked; on a CPU there is nothing to wait for."""
    if device == "cuda":
        torch.cuda.synchronize()


def time_and_memory(
    work: Callable[[], T], device: str, warm_up: int, repeats: int
) -> tuple[float, float, T]:
    """Median seconds, GB at the peak beyond those before, and what `work` returned last."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**30
    else:
        restart_peak()
        before = resident("VmRSS")
    seconds = []
    for _ in range(warm_up + repeats):
        synchronize(device)
        start = time.perf_counter()
        result = work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    after = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else resident("VmHWM")
    return median(seconds[warm_up:]), after - before, result


def resident(field: str) -> float:
    """Resident memory of this process in GB: VmRSS, now, or VmHWM, its peak (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**20


def restart_peak() -> None:
    """Let VmHWM begin again with the memory that this process has now."""
    Path("/proc/self/clear_refs").write_text("5")


def in_new_process(function: Callable[..., T], *args: object) -> T:
    """What a function of a module returns in a process of its own, so that peaks do not mix."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def run_process(*command: str | Path) -> tuple[float, float]:
    """Wall seconds and peak resident memory in GB of `python` with this behind it.

    Raises:
        RuntimeError: It did not end well.
    """
    launch = [sys.executable, ROOT / "bench" / "launch.py", "--", *command]
    result = subprocess.run(launch, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise RuntimeError(f"exit status {result.returncode}: {' '.join(map(str, command))}")
    seconds, memory = map(float, result.stdout.split())
    return seconds, memory
