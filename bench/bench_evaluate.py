"""What the official protocol costs beside the method: clicks, metrics and files.

    python bench/bench_evaluate.py --labels CASE.npz

Plays the six rounds on a volume of 63 x 512 x 512 with 15 objects: the largest labels of a case,
stretched to that size, or ellipsoids without one. The method is the stand-in of the tests, whose
time is not counted. The official evaluator takes 29 s for such a case on 2 cores.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from bench.common import bench_parser, commit, print_header, print_row, run_process, size_text
from stand_in import stand_in
from utils.evaluation.protocol import Round, RoundInput, RoundOutput, play
from utils.evaluation.report.folder import Folder
from utils.evaluation.report.page import write_report
from utils.evaluation.report.results import collect, write_segs
from utils.evaluation.report.slices import cut_slices
from utils.evaluation.simulated_prompts import challenge_boxes
from utils.formats.case import LabelledCase, read_labelled_case
from utils.runtime.memory import peak_gb

SHAPE, TINY_SHAPE = (63, 512, 512), (12, 48, 40)
SPACING = (0.8, 0.8, 5.0)  # mm, (x, y, z) as the file stores it
OBJECTS, TINY_OBJECTS = 15, 3


def get_args_parser() -> argparse.ArgumentParser:
    parser = bench_parser(__doc__, repeats=3)
    parser.add_argument("--labels", type=Path, help="case whose largest labels are taken")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser


def stretched_labels(path: Path, shape: tuple[int, int, int], objects: int) -> np.ndarray:
    """The largest labels of a case as 1..objects, on `shape` (nearest)."""
    with np.load(path) as file:
        gts = file["gts"]
    values, counts = np.unique(gts[gts > 0], return_counts=True)
    largest = np.sort(values[np.argsort(-counts, kind="stable")[:objects]])
    lut = np.zeros(int(gts.max()) + 1, np.uint8)
    lut[largest] = np.arange(1, len(largest) + 1)
    indices = [np.arange(n) * size // n for n, size in zip(shape, gts.shape, strict=True)]
    return lut[gts[np.ix_(*indices)]]


def ellipsoid_labels(shape: tuple[int, int, int], objects: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    gts = np.zeros(shape, np.uint8)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    for label in range(1, objects + 1):
        centre = rng.uniform(0.2, 0.8, 3) * shape
        radius = rng.uniform(0.06, 0.25, 3) * shape
        parts = [((g - c) / r) ** 2 for g, c, r in zip((z, y, x), centre, radius, strict=True)]
        gts[parts[0] + parts[1] + parts[2] < 1] = label
    return gts


def make_case(gts: np.ndarray, path: Path) -> LabelledCase:
    boxes = challenge_boxes(gts, range(1, int(gts.max()) + 1), 0)
    image = np.where(gts > 0, 90 + gts, 60).astype(np.uint8)
    np.savez(path, imgs=image, gts=gts, spacing=SPACING, boxes=boxes)
    return read_labelled_case(path)


def predict(request: RoundInput) -> RoundOutput:
    start = time.perf_counter()
    newest = list(request.click_rounds[-1]) if request.click_rounds else []
    return RoundOutput(stand_in(request.case, newest), time.perf_counter() - start)


def play_timed(labelled: LabelledCase, threads: int) -> tuple[float, list[Round], list[np.ndarray]]:
    """Seconds beside those of the method, and what was played."""
    start = time.perf_counter()
    rounds, segs = zip(*play(labelled, predict, threads=threads), strict=True)
    seconds = time.perf_counter() - start - sum(played.seconds for played in rounds)
    return seconds, list(rounds), list(segs)


def main(args: argparse.Namespace) -> None:
    shape, objects = (TINY_SHAPE, TINY_OBJECTS) if args.tiny else (SHAPE, OBJECTS)
    if args.labels is None:
        gts = ellipsoid_labels(shape, objects)
    else:
        gts = stretched_labels(args.labels, shape, objects)
    print(
        f"{size_text(shape)}, {gts.max()} objects of "
        f"{args.labels.name if args.labels else 'ellipsoids'}, {args.threads} threads, "
        f"commit {commit()}\n"
    )
    print_header("stage", "time", "peak memory of the process")
    for name in ("torch", "monai.metrics.utils"):
        seconds, memory = run_process("-c", f"import {name}")
        print_row(f"Python, and import of {name}", f"{seconds:.1f} s", f"{memory:.1f} GB")
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(Path(name) / "out")
        labelled = make_case(gts, Path(name) / "case.npz")
        times = []
        for _ in range(args.repeats):
            seconds, rounds, segs = play_timed(labelled, args.threads)
            times.append(seconds)
        shown = f"{median(times):.1f} s (runs {', '.join(f'{t:.1f}' for t in times)})"
        print_row("clicks and metrics of six rounds", shown, f"{peak_gb():.1f} GB")
        start = time.perf_counter()
        write_segs(folder.segs("case.npz"), segs, with_all=True)
        seconds = time.perf_counter() - start
        print_row("predictions of all rounds saved", f"{seconds:.1f} s", "")
        folder.prepare({"code": "", "time_limit": 0.0}, dict(method="", commit="", date=""), False)
        result = collect("case.npz", labelled, rounds)
        folder.finish(result, cut_slices(labelled, segs[-1], result.typical), "")
        start = time.perf_counter()
        write_report(folder, ["case.npz"])
        print_row("report", f"{time.perf_counter() - start:.1f} s", f"{peak_gb():.1f} GB")
    print(f"\nDSC {rounds[0].scores[:, 0].mean():.3f} -> {rounds[-1].scores[:, 0].mean():.3f}")


if __name__ == "__main__":
    main(get_args_parser().parse_args())
