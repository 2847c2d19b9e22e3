"""Image encoder against medim's: seconds, peak memory and difference, in one run.

    python bench/bench_encoder.py --device cpu
    python bench/bench_encoder.py --device cuda

Weights are random, relative position tables included. Needs torch, numpy and medim. Each row is a
process of its own, so that peaks do not mix. On a GPU the time is taken with events.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ROWS = {
    "cpu": [(1, "fp32")],
    "cuda": [(1, "fp32"), (8, "fp32"), (1, "bf16"), (8, "bf16")],
}


def get_args_parser(description: str | None = __doc__) -> argparse.ArgumentParser:
    """Of a benchmark whose rows are processes of their own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="timed, of which the median counts")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # JSON of one row, in the child process
    return parser


def build_seeded(network: str = "ours"):
    """A network with seeded weights, none of them at its initial zeros."""
    import torch

    if network == "ours":
        from segment_anything import sam_model_registry3D

        model = sam_model_registry3D["vit_b_ori"]()
    else:
        from medim.models.sam_med3d import build_sam3D_vit_b_ori

        model = build_sam3D_vit_b_ori()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "rel_pos" in name or "pos_embed" in name:
                parameter.copy_(0.3 * noise)
            elif parameter.dim() == 1:  # norms start at 1 and 0, biases near 0
                parameter.copy_(0.1 * noise + parameter.round())
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model.eval()


def resident(field: str) -> float:
    """Resident memory of this process in GB: VmRSS, now, or VmHWM, its peak (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**20


def measure(network: str, device: str, batch: int, precision: str, repeats: int, out: str) -> dict:
    """Time one encoder; its output goes to the file `out`."""
    import torch

    encoder = build_seeded(network).image_encoder.to(device)
    x = torch.randn(batch, 1, 128, 128, 128, generator=torch.Generator().manual_seed(1)).to(device)
    dtype = {"fp32": None, "bf16": torch.bfloat16}[precision]
    with torch.inference_mode(), torch.autocast(device, dtype, enabled=dtype is not None):
        seconds, memory, embedding = time_and_memory(lambda: encoder(x), device, 2, repeats)
    torch.save(embedding.float().cpu(), out)
    return {"seconds": seconds, "memory": memory}


def time_and_memory(
    work: Callable[[], T], device: str, warm_up: int, repeats: int
) -> tuple[float, float, T]:
    """Median seconds, GB at the peak beyond those before, and what `work` returned last."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**30
    else:
        Path("/proc/self/clear_refs").write_text("5")  # restarts the peak
        before = resident("VmRSS")
    seconds = []
    for _ in range(warm_up + repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    after = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else resident("VmHWM")
    return median(seconds[warm_up:]), after - before, result


def run_row(script: str, **row) -> dict:
    """What a benchmark prints for one row, in a process of its own."""
    command = [sys.executable, script, "--one", json.dumps(row)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{row}: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def device_name(device: str) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo").read_text().split("model name\t: ")[1].splitlines()[0]
    return f"{cpu}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"


def main(args: argparse.Namespace) -> None:
    import tempfile

    import torch

    print(f"{device_name(args.device)}; torch {torch.__version__}")
    print("| batch | precision | medim | ours | faster | medim peak | ours peak | max abs diff |")
    print("|---|---|---|---|---|---|---|---|")
    for batch, precision in ROWS[args.device]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            row = dict(device=args.device, batch=batch, precision=precision, repeats=args.repeats)
            theirs, ours = (
                run_row(__file__, network=network, out=str(folder / f"{network}.pt"), **row)
                for network in ("medim", "ours")
            )
            a, b = (torch.load(folder / f"{network}.pt") for network in ("medim", "ours"))
        print(
            f"| {batch} | {precision} | {theirs['seconds']:.3f} s | {ours['seconds']:.3f} s "
            f"| {theirs['seconds'] / ours['seconds']:.1f} x | +{theirs['memory']:.2f} GB "
            f"| +{ours['memory']:.2f} GB | {(a - b).abs().max():.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    args = get_args_parser().parse_args()
    if args.one:
        print(json.dumps(measure(**json.loads(args.one))))
    else:
        main(args)
