"""What a user waits for: whole infer.py processes, loading, start-up, and the stages of a case.

    python bench/bench_infer.py --device cpu
    python bench/bench_infer.py --device cuda

Cases and full-size weights are synthetic and made in a temporary folder: the masks mean nothing,
so what stands beside the speed is their Dice with those of medim's network on the same weights.
Needs torch, numpy and medim; the rows of whole processes also what infer.py itself imports.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "bench"))

from bench_encoder import build_seeded, device_name  # noqa: E402


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is shown")
    parser.add_argument("--quick", action="store_true", help="leave out the largest case")
    return parser


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
        bounds = dict(z_mid_y_min=y0, z_mid_y_max=y1, z_mid_x_min=x0, z_mid_x_max=x1)
        boxes.append(dict(z_min=z0, z_max=z1, z_mid=centre[0], **bounds))
    path.parent.mkdir(parents=True)
    np.savez_compressed(path, imgs=image, spacing=spacing, boxes=np.array(boxes, dtype=object))


def run_process(*command: str | Path) -> tuple[float, float]:
    """Wall seconds and peak resident memory in GB of a process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {command}")
    return seconds, usage.ru_maxrss / 2**20


def dice(a: Path, b: Path) -> float:
    """Of the foreground of two outputs."""
    with np.load(a) as file_a, np.load(b) as file_b:
        x, y = file_a["segs"], file_b["segs"]
    return 2 * np.count_nonzero((x == y) & (x > 0)) / (np.count_nonzero(x) + np.count_nonzero(y))


def bench_processes(folder: Path, checkpoint: Path, args: argparse.Namespace) -> None:
    print("| whole process | medim's network | ours | Dice of the two |")
    print("|---|---|---|---|")
    infer = [ROOT / "infer.py", "--checkpoint", checkpoint, "--policy", "baseline"]
    infer += ["--device", args.device]
    case = folder / "a" / "case.npz"
    write_case(case, (150, 512, 512), (0.8, 0.8, 2.5), objects=3)
    theirs = run_process(
        *infer, "--backend", "medim", "--inputs", case, "--outputs", folder / "medim"
    )
    runs = [
        run_process(*infer, "--inputs", case, "--outputs", folder / "ours")
        for _ in range(args.repeats)
    ]
    agreement = dice(folder / "ours" / "case.npz", folder / "medim" / "case.npz")
    print(
        f"| 150 x 512 x 512, 3 boxes | {theirs[0]:.1f} s, {theirs[1]:.1f} GB "
        f"| {median(s for s, _ in runs):.1f} s, {max(m for _, m in runs):.1f} GB "
        f"| {agreement:.4f} |",
        flush=True,
    )
    if not args.quick:
        case = folder / "b" / "case.npz"
        write_case(case, (1000, 512, 512), (0.7, 0.7, 1.0), objects=20)
        seconds, memory = run_process(*infer, "--inputs", case, "--outputs", folder / "ours")
        print(f"| 1000 x 512 x 512, 20 boxes | | {seconds:.1f} s, {memory:.1f} GB | |", flush=True)
    runs = [run_process(ROOT / "infer.py", "--help") for _ in range(args.repeats)]
    print(f"| infer.py --help | | {median(s for s, _ in runs):.2f} s | |\n", flush=True)


def bench_stages(folder: Path, checkpoint: Path, args: argparse.Namespace) -> None:
    """Where the time of a case goes, in this process and warm, but for loading."""
    from utils import roi
    from utils.formats import case as case_io
    from utils.inference import method as policy
    from utils.inference.checkpoint import build_model, read_checkpoint

    synchronize = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    path = folder / "stages" / "case.npz"
    write_case(path, (150, 512, 512), (0.8, 0.8, 2.5), objects=1)
    model = build_model(read_checkpoint(checkpoint))  # the imports, the file cache
    stages: dict[str, list[float]] = {}

    def timed(stage, function, *inputs):
        synchronize()
        start = time.perf_counter()
        result = function(*inputs)
        synchronize()
        stages.setdefault(stage, []).append(1000 * (time.perf_counter() - start))
        return result

    with torch.inference_mode():
        for i in range(args.repeats + 2):
            if i == 2:
                stages.clear()
            model = timed("load checkpoint", lambda: build_model(read_checkpoint(checkpoint)))
            model = model.to(args.device)
            case = timed("read", case_io.read_case, path)
            (query,) = policy.baseline_queries(case, model.img_size, seed=0)
            crop = timed("crop + resample", roi.crop_roi, case.image, query.roi)
            image = timed("normalise", roi.normalise, crop)[None, None].to(args.device)
            embedding = timed("encode", model.encode, image)
            point = torch.tensor([[query.point_roi]], dtype=torch.float32, device=args.device)
            label = torch.ones(1, 1, device=args.device)
            mask_prompt = torch.zeros(1, 1, *[model.mask_size] * 3, device=args.device)
            low_res, _ = timed("decode", model.decode, embedding, (point, label), None, mask_prompt)
            logits = timed("upscale", model.upscale, low_res)
            mask = (logits[0, 0] > 0).cpu().numpy()
            region, mask = timed("paste", roi.paste_roi, mask, query.roi)
            seg = np.zeros(case.shape, np.uint8)
            seg[region] = mask
            timed("write", case_io.write_case, folder / "seg.npz", seg)
    print("| stage, 1 object of 150 x 512 x 512 | median | 90th percentile |")
    print("|---|---|---|")
    for stage, times in stages.items():
        print(f"| {stage} | {median(times):.0f} ms | {np.percentile(times, 90):.0f} ms |")


def main(args: argparse.Namespace) -> None:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    print(f"{device_name(args.device)}; torch {torch.__version__}; fp32; commit {commit}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = folder / "seeded.pth"
        torch.save({"model_state_dict": build_seeded().state_dict()}, checkpoint)
        missing = [m for m in ("prefetch_generator", "tqdm") if not importlib.util.find_spec(m)]
        if missing:
            print(f"whole processes: not measured, this machine lacks {', '.join(missing)}\n")
        else:
            bench_processes(folder, checkpoint, args)
        bench_stages(folder, checkpoint, args)


if __name__ == "__main__":
    main(get_args_parser().parse_args())
