"""What a user waits for: whole infer.py processes, start-up, and the stages of a case.

    python bench/bench_infer.py --device cpu
    python bench/bench_infer.py --device cuda

Cases and full-size weights are synthetic and made in a temporary folder: the masks mean nothing,
so what stands beside the speed is their Dice with those of medim's network on the same weights.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TypeVar
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import (
    ROOT,
    TINY,
    build_seeded,
    in_new_process,
    network_parser,
    origin,
    print_header,
    print_row,
    run_process,
    size_text,
    synchronize,
    time_and_memory,
    write_case,
)
from utils.formats.case import read_case
from utils.formats.case import write_case as write_labels
from utils.inference import baseline
from utils.inference.checkpoint import build_model, read_checkpoint
from utils.inference.medim_backend import build_medim_model
from utils.inference.method import make_segmenter

T = TypeVar("T")

SHAPE, SPACING, OBJECTS = (150, 512, 512), (0.8, 0.8, 2.5), 3  # (z, y, x); (x, y, z) in mm
LARGE_SHAPE, LARGE_SPACING, LARGE_OBJECTS = (1000, 512, 512), (0.7, 0.7, 1.0), 20
TINY_SHAPE = (12, 48, 40)
WARM_UP = 2
# What the published method calls for an object, by its name there, and on the network.
STEPS = {"crop_roi": "crop + resample", "normalise": "normalise", "paste_roi": "paste"}
PASSES = ("encode", "decode", "upscale")
# Objects, which are a batch, and precision.
ROWS = {"cpu": [(1, "fp32")], "cuda": [(1, "fp32"), (8, "fp32"), (1, "bf16"), (8, "bf16")]}
BUILD = {"medim": build_medim_model, "ours": build_model}


def get_args_parser() -> argparse.ArgumentParser:
    parser = network_parser(__doc__, repeats=3)
    parser.add_argument("--quick", action="store_true", help="leave out the largest case")
    return parser


def dice(a: Path, b: Path) -> float:
    """Dice of two outputs, foreground with the same label being what they share."""
    with np.load(a) as file_a, np.load(b) as file_b:
        x, y = file_a["segs"], file_b["segs"]
    return 2 * np.count_nonzero((x == y) & (x > 0)) / (np.count_nonzero(x) + np.count_nonzero(y))


def bench_processes(folder: Path, checkpoint: Path, args: argparse.Namespace) -> None:
    print_header("whole process, fp32", "medim's network", "ours", "Dice of the two")
    infer: list[str | Path] = [ROOT / "infer.py", "--checkpoint", checkpoint]
    infer += ["--policy", "baseline", "--device", args.device]
    shape, case = TINY_SHAPE if args.tiny else SHAPE, folder / "a" / "case.npz"
    write_case(case, shape, SPACING, OBJECTS)
    runs = [
        run_process(*infer, "--inputs", case, "--outputs", folder / "ours")
        for _ in range(args.repeats)
    ]
    seconds, memory = (median(values) for values in zip(*runs, strict=True))
    theirs = agreement = ""
    if not args.tiny:  # medim's network comes in one size
        medim_seconds, medim_memory = run_process(
            *infer, "--backend", "medim", "--inputs", case, "--outputs", folder / "medim"
        )
        theirs = f"{medim_seconds:.1f} s, {medim_memory:.1f} GB"
        agreement = f"{dice(folder / 'ours' / 'case.npz', folder / 'medim' / 'case.npz'):.4f}"
    ours = f"{seconds:.1f} s, {memory:.1f} GB"
    print_row(f"{size_text(shape)}, {OBJECTS} boxes", theirs, ours, agreement)
    if not args.quick and not args.tiny:
        case = folder / "b" / "case.npz"
        write_case(case, LARGE_SHAPE, LARGE_SPACING, LARGE_OBJECTS)
        seconds, memory = run_process(*infer, "--inputs", case, "--outputs", folder / "ours")
        ours = f"{seconds:.1f} s, {memory:.1f} GB"
        print_row(f"{size_text(LARGE_SHAPE)}, {LARGE_OBJECTS} boxes", "", ours, "")
    runs = [run_process(ROOT / "infer.py", "--help") for _ in range(args.repeats)]
    print_row("infer.py --help", "", f"{median(seconds for seconds, _ in runs):.2f} s", "")


class Stages:
    """The milliseconds that each stage took, call by call, in the order of their first calls."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: dict[str, list[float]] = {}

    def timed(self, stage: str, function: Callable[..., T]) -> Callable[..., T]:
        """The function, which notes its time when it is called."""

        def call(*args, **options) -> T:
            synchronize(self.device)
            start = time.perf_counter()
            result = function(*args, **options)
            synchronize(self.device)
            self.times.setdefault(stage, []).append(1000 * (time.perf_counter() - start))
            return result

        return call

    @contextmanager
    def watching(self, owner: object, names: dict[str, str]) -> Iterator[None]:
        """Note what these functions of a module or a network take while the context stands."""
        with ExitStack() as stack:
            for name, stage in names.items():
                function = self.timed(stage, getattr(owner, name))
                stack.enter_context(patch.object(owner, name, function))
            yield


def measure_case(
    network: str, checkpoint: Path, path: Path, precision: str, device: str, repeats: int
) -> tuple[float, float, np.ndarray]:
    """Seconds, GB beyond the weights, and the labels of a case whose objects are a batch."""
    model = BUILD[network](read_checkpoint(checkpoint)).to(device)
    case = read_case(path)
    segment = make_segmenter(model, "baseline", batch_size=len(case.objects), precision=precision)
    return time_and_memory(lambda: segment(case), device, 1, repeats)


def bench_batches(folder: Path, checkpoint: Path, args: argparse.Namespace) -> None:
    """Print what a case takes in a warm process, beside medim's network."""
    shape = TINY_SHAPE if args.tiny else SHAPE
    names = "medim", "ours", "faster", "medim peak", "ours peak", "voxels that differ"
    print_header(f"{size_text(shape)}, warm: boxes together", "precision", *names)
    for count, precision in ROWS[args.device]:
        path = folder / f"batch_{count}" / "case.npz"
        write_case(path, shape, SPACING, count)
        how = checkpoint, path, precision, args.device, args.repeats
        seconds, memory, labels = in_new_process(measure_case, "ours", *how)
        cells = ["", f"{seconds:.2f} s", "", "", f"+{memory:.2f} GB", ""]
        if not args.tiny:  # medim's network comes in one size
            their_seconds, their_memory, theirs = in_new_process(measure_case, "medim", *how)
            cells[0], cells[3] = f"{their_seconds:.2f} s", f"+{their_memory:.2f} GB"
            cells[2] = f"{their_seconds / seconds:.1f} x"
            cells[5] = f"{np.count_nonzero(labels != theirs)} of {np.count_nonzero(theirs)}"
        print_row(count, precision, *cells)


def bench_stages(folder: Path, checkpoint: Path, args: argparse.Namespace) -> None:
    """Print where the time of a case goes, in this process and warm."""
    shape, path = TINY_SHAPE if args.tiny else SHAPE, folder / "stages" / "case.npz"
    write_case(path, shape, SPACING, objects=1)
    stages = Stages(args.device)
    load = stages.timed("load checkpoint", lambda: build_model(read_checkpoint(checkpoint)))
    for i in range(WARM_UP + args.repeats):
        if i == WARM_UP:
            stages.times.clear()
        model = load().to(args.device)
        case = stages.timed("read", read_case)(path)
        passes = {name: name for name in PASSES}
        with stages.watching(baseline, STEPS), stages.watching(model, passes):
            seg = baseline.predict_baseline(model, case)
        stages.timed("write", write_labels)(folder / "seg.npz", seg)
    print()
    print_header(f"stage, 1 object of {size_text(shape)}, fp32", "median", "90th percentile")
    for stage, times in stages.times.items():
        print_row(stage, f"{median(times):.0f} ms", f"{np.percentile(times, 90):.0f} ms")


def main(args: argparse.Namespace) -> None:
    print(f"{origin(args.device)}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = folder / "seeded.pth"
        weights = build_seeded(args.tiny).state_dict()
        sizes = TINY if args.tiny else {}
        torch.save({"model_state_dict": weights, "model_args": sizes}, checkpoint)
        bench_processes(folder, checkpoint, args)
        print()
        bench_batches(folder, checkpoint, args)
        bench_stages(folder, checkpoint, args)


if __name__ == "__main__":
    main(get_args_parser().parse_args())
