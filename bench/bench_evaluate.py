"""What the official protocol costs beside the method: clicks, metrics and files.

    python bench/bench_evaluate.py --labels CASE.npz

Plays the six rounds on a volume of 63 x 512 x 512 with 15 objects: the largest labels of a case,
stretched to that size, or ellipsoids without one. The method is the stand-in of the tests, whose
time is not counted. The official evaluator takes 29 s for such a case on 2 cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench")]

from stand_in import stand_in  # noqa: E402
from utils.evaluation.protocol import Round, RoundInput, RoundOutput, play  # noqa: E402
from utils.evaluation.report.folder import Folder  # noqa: E402
from utils.evaluation.report.page import write_report  # noqa: E402
from utils.evaluation.report.results import collect, write_segs  # noqa: E402
from utils.evaluation.report.slices import cut_slices  # noqa: E402
from utils.evaluation.simulated_prompts import challenge_boxes  # noqa: E402
from utils.formats.case import LabelledCase, read_labelled_case  # noqa: E402
from utils.runtime.memory import peak_gb  # noqa: E402

SHAPE = (63, 512, 512)
SPACING = (0.8, 0.8, 5.0)  # mm, (x, y, z) as the file stores it
OBJECTS = 15


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=Path, help="case whose largest labels are taken")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is shown")
    return parser


def stretched_labels(path: Path) -> np.ndarray:
    """The largest labels of a case as 1..15, on SHAPE (nearest)."""
    with np.load(path) as file:
        gts = file["gts"]
    values, counts = np.unique(gts[gts > 0], return_counts=True)
    largest = np.sort(values[np.argsort(-counts, kind="stable")[:OBJECTS]])
    lut = np.zeros(int(gts.max()) + 1, np.uint8)
    lut[largest] = np.arange(1, len(largest) + 1)
    indices = [np.arange(n) * size // n for n, size in zip(SHAPE, gts.shape, strict=True)]
    return lut[gts[np.ix_(*indices)]]


def ellipsoid_labels() -> np.ndarray:
    rng = np.random.default_rng(0)
    gts = np.zeros(SHAPE, np.uint8)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for label in range(1, OBJECTS + 1):
        centre = rng.uniform(0.2, 0.8, 3) * SHAPE
        radius = rng.uniform(0.06, 0.25, 3) * SHAPE
        parts = [((g - c) / r) ** 2 for g, c, r in zip((z, y, x), centre, radius, strict=True)]
        gts[parts[0] + parts[1] + parts[2] < 1] = label
    return gts


def make_case(labels: Path | None, path: Path) -> LabelledCase:
    gts = ellipsoid_labels() if labels is None else stretched_labels(labels)
    boxes = challenge_boxes(gts, range(1, int(gts.max()) + 1), 0)
    image = np.where(gts > 0, 90 + gts, 60).astype(np.uint8)
    np.savez(path, imgs=image, gts=gts, spacing=SPACING, boxes=boxes)
    return read_labelled_case(path)


def predict(request: RoundInput) -> RoundOutput:
    start = time.perf_counter()
    newest = list(request.click_rounds[-1]) if request.click_rounds else []
    return RoundOutput(stand_in(request.case, newest), time.perf_counter() - start)


def main(args: argparse.Namespace) -> None:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(Path(name) / "out")
        labelled = make_case(args.labels, Path(name) / "case.npz")
        print(
            f"{' x '.join(map(str, SHAPE))}, {len(labelled.labels)} objects of "
            f"{args.labels.name if args.labels else 'ellipsoids'}, {args.threads} threads, "
            f"commit {commit}\n"
        )
        print("| stage | time | peak memory of the process |\n|---|---|---|")
        start = time.perf_counter()
        import torch  # noqa: F401

        print(
            f"| import of torch, once | {time.perf_counter() - start:.1f} s | {peak_gb():.1f} GB |"
        )
        start = time.perf_counter()
        import monai.metrics.utils  # noqa: F401

        print(
            f"| import of MONAI, once | {time.perf_counter() - start:.1f} s | {peak_gb():.1f} GB |"
        )
        times = []
        for _ in range(args.repeats):
            rounds: list[Round] = []
            segs: list[np.ndarray] = []
            start = time.perf_counter()
            for played, seg in play(labelled, predict, threads=args.threads):
                rounds.append(played)
                segs.append(seg)
            method = sum(played.seconds for played in rounds)
            times.append(time.perf_counter() - start - method)
        print(
            f"| clicks and metrics of six rounds | {np.median(times):.1f} s "
            f"(runs {', '.join(f'{t:.1f}' for t in times)}) | {peak_gb():.1f} GB |"
        )
        start = time.perf_counter()
        write_segs(folder.segs("case.npz"), segs, with_all=True)
        print(f"| predictions of all rounds saved | {time.perf_counter() - start:.1f} s | |")
        folder.prepare({"code": "", "time_limit": 0.0}, dict(method="", commit="", date=""), False)
        result = collect("case.npz", labelled, rounds)
        folder.finish(result, cut_slices(labelled, segs[-1], result.typical), "")
        start = time.perf_counter()
        write_report(folder, ["case.npz"])
        print(f"| report | {time.perf_counter() - start:.1f} s | {peak_gb():.1f} GB |")
        print(f"\nDSC {rounds[0].scores[:, 0].mean():.3f} -> {rounds[-1].scores[:, 0].mean():.3f}")


if __name__ == "__main__":
    main(get_args_parser().parse_args())
