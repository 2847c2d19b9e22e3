"""What the adaptive policy costs: an interactive click by click, and a volume of many objects.

    python bench/bench_adaptive.py --device cpu --checkpoint work_dir/adaptive/sam_model_latest.pth
    python bench/bench_adaptive.py --device cuda

--checkpoint is a trained small network; without it, and for vit_b_ori always, weights are random,
and masks mean nothing: among the many objects, ROIs then grow and clicks are asked again as often
as they may be. These objects are synthetic nuclei, played by the official protocol, clicks and
scores not counted. The interactive rows are of a ROI that stands, fine or coarse: a click is a
decoder pass. On a CPU, whole processes on the sample cases are measured, too.
Needs what evaluate.py needs.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "bench"))

from bench_encoder import build_seeded, device_name, resident  # noqa: E402
from bench_infer import run_process  # noqa: E402

NUCLEI = (134, 200, 200)  # voxels, (z, y, x)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--checkpoint", type=Path, help="of a small network")
    parser.add_argument("--repeats", type=int, default=7, help="clicks, of which the median counts")
    parser.add_argument("--objects", type=int, default=255, help="nuclei; 0: only the clicks")
    return parser


def build_small(checkpoint: Path | None):
    """The network, its settings, and what it is called in the tables."""
    from segment_anything import sam_model_registry3D
    from segment_anything.bounds import AdaptiveSettings
    from utils.inference.checkpoint import adaptive_settings, build_model, read_checkpoint

    if checkpoint is not None:
        read = read_checkpoint(checkpoint)
        return build_model(read), adaptive_settings(read), f"{read.model_type}, trained"
    torch.manual_seed(0)
    model = sam_model_registry3D["hybrid_s"]().eval()
    return model, AdaptiveSettings(), "hybrid_s, random weights"


def measure_clicks(
    model, device: str, precision: str, repeats: int, side: int
) -> tuple[float, float, float]:
    """Seconds of the first prompt, of a further click, and of a decoder pass.

    The network's answer is replaced by a ball in the middle of the ROI, which obeys each click, so
    that the ROI stands whatever the weights are. `side` is that of the box in voxels, along y and
    x.
    """
    from segment_anything import SamPredictor3D, adaptive

    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    image = np.random.default_rng(0).integers(1, 256, (150, 512, 512), np.uint8)
    firsts, clicks, passes = [], [], []
    decode = model.decode
    along = torch.arange(model.mask_size, device=device) - (model.mask_size - 1) / 2
    squares = along[:, None, None] ** 2 + along[:, None] ** 2 + along**2
    ball = (model.mask_size / 4 - squares.sqrt())[None, None]

    def timed_decode(*args, **options):
        synchronize()
        start = time.perf_counter()
        result = decode(*args, **options)
        synchronize()
        passes.append(time.perf_counter() - start)
        return ball, result[1]

    predictor = SamPredictor3D(model, precision=precision)
    with (
        patch.object(model, "decode", timed_decode),
        patch.object(adaptive, "is_obeyed", lambda *_: True),
    ):
        for i in range(repeats + 1):
            predictor.set_image(image, (2.5, 0.8, 0.8))
            start = time.perf_counter()
            predictor.predict(box=(40, 200, 200, 60, 200 + side, 200 + side))
            firsts.append(time.perf_counter() - start)
            start = time.perf_counter()
            predictor.predict(points=[(50, 220 + i, 230)], labels=[1])
            clicks.append(time.perf_counter() - start)
    return median(firsts[1:]), median(clicks[1:]), median(passes[2:])


def nuclei(count: int):
    """Ellipsoids on a jittered grid, as a case with boxes, and its truth."""
    from scipy import ndimage

    from segment_anything.prompts import Box, Prompts
    from utils.formats.case import Case, LabelledCase

    rng = np.random.default_rng(0)
    sides = (5, 7, 8) if count > 100 else (3, 4, 4)
    assert count <= np.prod(sides)
    truth = np.zeros(NUCLEI, np.uint8)
    z, y, x = np.ogrid[tuple(slice(n) for n in NUCLEI)]
    cells = [np.array(c) for c in np.ndindex(*sides)]
    pitch = np.array(NUCLEI) / sides
    for label, cell in enumerate(cells[:count], 1):
        cz, cy, cx = (cell + rng.uniform(0.4, 0.6, 3)) * pitch
        rz, ry, rx = rng.uniform(0.3, 0.5, 3) * pitch
        truth[((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1] = label
    light = ndimage.gaussian_filter((truth > 0).astype(np.float32), 1.0)
    image = (30 + 120 * light + rng.normal(0, 12, NUCLEI)).clip(1, 255).astype(np.uint8)
    objects = []
    for region in ndimage.find_objects(truth, max_label=count):
        low, high = zip(*((part.start, part.stop) for part in region), strict=True)
        objects.append(Prompts(Box(low, high)))
    case = Case("nuclei.npz", image, (1.0, 1.0, 1.0), tuple(objects), 1)
    return LabelledCase(case, truth, tuple(range(1, count + 1)))


def bench_nuclei(model, settings, name: str, precision: str, args: argparse.Namespace) -> None:
    from utils.evaluation.protocol import play, timed_predictor
    from utils.inference.method import make_segmenter

    labelled = nuclei(args.objects)
    segment = make_segmenter(model, "adaptive", settings, precision=precision)
    rounds = [played for played, _ in play(labelled, timed_predictor(segment), math.inf)]
    seconds = [played.seconds for played in rounds]
    curve = " ".join(f"{played.scores[:, 0].mean():.3f}" for played in rounds)
    print(
        f"| {name} | {precision} | {args.objects} | {seconds[0]:.0f} s "
        f"| {np.mean(seconds[1:]):.0f} s | {sum(seconds):.0f} s | {resident('VmHWM'):.1f} GB "
        f"| {curve} |",
        flush=True,
    )


def bench_process(checkpoint: Path, repeats: int) -> None:
    """infer.py on the sample cases, from start to exit."""
    print("| infer.py on a sample case, whole process | seconds | peak |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case in sorted((ROOT / "inputs").glob("*.npz")):
            options = ("--inputs", case, "--outputs", folder, "--checkpoint", checkpoint)
            runs = [run_process(ROOT / "infer.py", *options) for _ in range(repeats)]
            seconds, memory = (median(values) for values in zip(*runs, strict=True))
            print(f"| {case.stem} | {seconds:.1f} s | {memory:.1f} GB |", flush=True)


def main(args: argparse.Namespace) -> None:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    print(f"{device_name(args.device)}; torch {torch.__version__}; commit {commit}\n")
    small, settings, name = build_small(args.checkpoint)
    if args.objects:
        print(
            "| many objects | precision | objects | first round | a further round | all six | peak "
            "| mean DSC of the rounds |\n|---|---|---|---|---|---|---|---|"
        )
        for precision in ("fp32", "bf16"):
            bench_nuclei(small.to(args.device), settings, name, precision, args)
    if args.device == "cpu" and args.checkpoint is not None:
        bench_process(args.checkpoint, args.repeats)
    print(
        "\n| interactive, 150 x 512 x 512 | precision | ROI | first prompt | a further click "
        "| a decoder pass |\n|---|---|---|---|---|---|"
    )
    models = {name: small, "vit_b_ori, random weights": build_seeded()}
    for name, model in models.items():
        for precision in ("fp32", "bf16"):
            for roi, share in (("fine", 0.9), ("coarse", 1.8)):
                side = int(share * model.img_size)
                times = measure_clicks(
                    model.to(args.device), args.device, precision, args.repeats, side
                )
                shown = " | ".join(f"{1000 * seconds:.0f} ms" for seconds in times)
                print(f"| {name} | {precision} | {roi} | {shown} |", flush=True)


if __name__ == "__main__":
    main(get_args_parser().parse_args())
