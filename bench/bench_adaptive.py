"""What the adaptive policy costs: a volume of many objects, and interactive use click by click.

    python bench/bench_adaptive.py --device cpu --checkpoint ckpt/sam_med3d_small.safetensors
    python bench/bench_adaptive.py --device cuda

--checkpoint is a trained small network; without it, and for vit_b_ori always, weights are random,
and masks mean nothing: among the many objects, ROIs then grow and clicks are asked again as often
as they may be. These objects are synthetic nuclei, played by the official protocol, clicks and
scores not counted. The interactive rows are of a ROI that stands, fine or coarse: a click is a
decoder pass. On a CPU, whole processes on the sample cases are measured, too.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import (
    ROOT,
    TINY_HYBRID,
    build_seeded,
    network_parser,
    origin,
    print_header,
    print_row,
    resident,
    restart_peak,
    run_process,
    size_text,
    synchronize,
)
from segment_anything import Sam3D, SamPredictor3D, sam_model_registry3D
from segment_anything.bounds import AdaptiveSettings
from segment_anything.prompts import Box, Prompts
from utils.evaluation.protocol import play, timed_predictor
from utils.formats.case import Case, LabelledCase
from utils.inference.checkpoint import adaptive_settings, build_model, read_checkpoint
from utils.inference.method import make_segmenter

Shape = tuple[int, int, int]

NUCLEI, TINY_NUCLEI = (134, 200, 200), (30, 44, 40)  # voxels, (z, y, x)
VOLUME, TINY_VOLUME = (150, 512, 512), (40, 128, 120)
VOLUME_SPACING = (2.5, 0.8, 0.8)  # mm, (z, y, x)
PRECISIONS = ("fp32", "bf16")
BOX_SHARES = {"fine": 0.9, "coarse": 1.8}  # side of the box in voxels over that of the ROI


def get_args_parser() -> argparse.ArgumentParser:
    parser = network_parser(__doc__, repeats=7)
    parser.add_argument("--checkpoint", type=Path, help="a trained small network")
    parser.add_argument("--objects", type=int, default=255, help="nuclei; 0: only the clicks")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=list(PRECISIONS),
        help="a CPU without instructions for bf16 takes minutes",
    )
    return parser


def build_small(checkpoint: Path | None, is_tiny: bool) -> tuple[Sam3D, AdaptiveSettings, str]:
    """The network, its settings, and what it is called in the tables."""
    if checkpoint is not None:
        read = read_checkpoint(checkpoint)
        return build_model(read), adaptive_settings(read), f"{read.model_type}, trained"
    torch.manual_seed(0)
    model = sam_model_registry3D["hybrid_s"](**TINY_HYBRID if is_tiny else {}).eval()
    return model, AdaptiveSettings(), "hybrid_s, random weights"


def measure_clicks(
    model: Sam3D,
    settings: AdaptiveSettings,
    precision: str,
    repeats: int,
    side: int,
    shape: Shape,
) -> tuple[float, float, float]:
    """Seconds of the first prompt, of a further click, and of a decoder pass.

    The network's answer is replaced by a ball in the middle of the ROI, on which the clicks are,
    so that the ROI stands whatever the weights are. `side` is that of the box in voxels, along y
    and x.
    """
    device = model.device
    image = np.random.default_rng(0).integers(1, 256, shape, np.uint8)
    z, y, x = (n // 2 for n in shape)
    box = (z - 10, y - side // 2, x - side // 2, z + 10, y + side // 2, x + side // 2)
    along = torch.arange(model.mask_size, device=device) - (model.mask_size - 1) / 2
    squares = along[:, None, None] ** 2 + along[:, None] ** 2 + along**2
    ball = (model.mask_size / 4 - squares.sqrt())[None, None]
    firsts, clicks, passes = [], [], []
    decode = model.decode

    def timed_decode(*args, **options) -> tuple[torch.Tensor, torch.Tensor]:
        synchronize(device.type)
        start = time.perf_counter()
        _, iou = decode(*args, **options)
        synchronize(device.type)
        passes.append(time.perf_counter() - start)
        return ball, iou

    predictor = SamPredictor3D(model, settings, precision=precision)
    with patch.object(model, "decode", timed_decode):
        for i in range(repeats + 1):
            predictor.set_image(image, VOLUME_SPACING)
            start = time.perf_counter()
            predictor.predict(box=box)
            firsts.append(time.perf_counter() - start)
            start = time.perf_counter()
            predictor.predict(points=[(z, y, x + i % 5)], labels=[1])
            clicks.append(time.perf_counter() - start)
    each = 3 if settings.second_look else 2
    assert len(passes) == each * (repeats + 1), "the ROI did not stand"
    return median(firsts[1:]), median(clicks[1:]), median(passes[each:])


def bench_clicks(
    models: dict[str, tuple[Sam3D, AdaptiveSettings]], args: argparse.Namespace
) -> None:
    shape = TINY_VOLUME if args.tiny else VOLUME
    names = "precision", "ROI", "first prompt", "a further click", "a decoder pass"
    print_header(f"interactive, {size_text(shape)}", *names)
    for name, (model, settings) in models.items():
        model.to(args.device)
        for precision in args.precision:
            for roi, share in BOX_SHARES.items():
                side = int(share * model.img_size)
                times = measure_clicks(model, settings, precision, args.repeats, side, shape)
                cells = (f"{1000 * seconds:.0f} ms" for seconds in times)
                print_row(name, precision, roi, *cells)


def nuclei(count: int, shape: Shape) -> LabelledCase:
    """Ellipsoids on a jittered grid, as a case with boxes, and its truth."""
    rng = np.random.default_rng(0)
    sides = (5, 7, 8) if count > 100 else (3, 4, 4)
    assert count <= np.prod(sides)
    truth = np.zeros(shape, np.uint8)
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    cells = [np.array(c) for c in np.ndindex(*sides)]
    pitch = np.array(shape) / sides
    for label, cell in enumerate(cells[:count], 1):
        cz, cy, cx = (cell + rng.uniform(0.4, 0.6, 3)) * pitch
        rz, ry, rx = rng.uniform(0.3, 0.5, 3) * pitch
        truth[((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1] = label
    light = ndimage.gaussian_filter((truth > 0).astype(np.float32), 1.0)
    image = (30 + 120 * light + rng.normal(0, 12, shape)).clip(1, 255).astype(np.uint8)
    objects = []
    for region in ndimage.find_objects(truth, max_label=count):
        low, high = zip(*((part.start, part.stop) for part in region), strict=True)
        objects.append(Prompts(Box(low, high)))
    case = Case("nuclei.npz", image, (1.0, 1.0, 1.0), tuple(objects), 1)
    return LabelledCase(case, truth, tuple(range(1, count + 1)))


def bench_nuclei(
    model: Sam3D, settings: AdaptiveSettings, name: str, args: argparse.Namespace
) -> None:
    labelled = nuclei(args.objects, TINY_NUCLEI if args.tiny else NUCLEI)
    times = "first round", "a further round", "all six", "peak"
    print_header("many objects", "precision", "objects", *times, "mean DSC of the rounds")
    for precision in args.precision:
        restart_peak()
        segment = make_segmenter(model, "adaptive", settings, precision=precision)
        rounds = [played for played, _ in play(labelled, timed_predictor(segment), math.inf)]
        if failure := next((played.failure for played in rounds if played.failure), ""):
            raise RuntimeError(failure)
        seconds = [played.seconds for played in rounds]
        print_row(
            name,
            precision,
            args.objects,
            f"{seconds[0]:.0f} s",
            f"{np.mean(seconds[1:]):.0f} s",
            f"{sum(seconds):.0f} s",
            f"{resident('VmHWM'):.1f} GB",
            " ".join(f"{played.scores[:, 0].mean():.3f}" for played in rounds),
        )


def bench_process(checkpoint: Path, repeats: int) -> None:
    """Print what infer.py takes for the sample cases, from start to exit."""
    print_header("infer.py on a sample case, whole process", "seconds", "peak")
    with tempfile.TemporaryDirectory() as folder:
        for case in sorted((ROOT / "inputs").glob("*.npz")):
            options = ("--inputs", case, "--outputs", folder, "--checkpoint", checkpoint)
            runs = [run_process(ROOT / "infer.py", *options) for _ in range(repeats)]
            seconds, memory = (median(values) for values in zip(*runs, strict=True))
            print_row(case.stem, f"{seconds:.1f} s", f"{memory:.1f} GB")


def main(args: argparse.Namespace) -> None:
    print(f"{origin(args.device)}\n")
    small, settings, name = build_small(args.checkpoint, args.tiny)
    if args.objects:
        bench_nuclei(small.to(args.device), settings, name, args)
        print()
    if args.device == "cpu" and args.checkpoint is not None:
        bench_process(args.checkpoint, args.repeats)
        print()
    large = build_seeded(args.tiny), AdaptiveSettings()
    models = {name: (small, settings), "vit_b_ori, random weights": large}
    bench_clicks(models, args)


if __name__ == "__main__":
    main(get_args_parser().parse_args())
