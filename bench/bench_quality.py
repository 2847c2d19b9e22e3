"""What a network knows about its own mistakes: its estimates of the IoU, and where to ask it.

    python bench/bench_quality.py --cases val --checkpoint ckpt/FILE.safetensors

Each object is segmented by itself: by its box, or by the evaluator's first click where there is
none, then by five clicks of each of three kinds: the evaluator's, in the middle of the largest
error, which only the truth tells; suggested ones; and random ones near the border. Whether a voxel
is in the object is answered by the truth. Prints estimates of the IoU beside what it is, as they
come from the network and by the straight line that fits them best (for ckpt/export.py --iou-line:
measure it on training cases), what is reported as probably wrong, and DSC after each click.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import origin, print_header, print_row
from segment_anything import SamPredictor3D
from segment_anything.patches import PROBABLY_WRONG, Prediction
from segment_anything.prompts import Index3
from segment_anything.suggestion import suggest_click
from utils.evaluation.metrics import dsc
from utils.evaluation.protocol import ROUNDS
from utils.evaluation.simulated_prompts import largest_error_click
from utils.formats.case import LabelledCase, read_labelled_case
from utils.inference.checkpoint import adaptive_settings, read_checkpoint
from utils.inference.load import build_model

BINS = np.linspace(0, 1, 11)
NEAR = 2  # voxels on either side of the border
POOR = 0.7  # IoU; a Dice of 0.82

Chooser = Callable[[Prediction, np.ndarray, np.random.Generator], Index3 | None]


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True, help="folder of cases with gts")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of the adaptive policy")
    parser.add_argument("--objects", type=int, default=1000, help="of a case, at most")
    return parser


def by_the_truth(found: Prediction, truth: np.ndarray, rng: np.random.Generator) -> Index3 | None:
    click = largest_error_click(truth, found.mask)
    return None if click is None else click.point


def suggested(found: Prediction, truth: np.ndarray, rng: np.random.Generator) -> Index3 | None:
    return suggest_click(found)


def at_random(found: Prediction, truth: np.ndarray, rng: np.random.Generator) -> Index3 | None:
    mask = found.mask
    wide = ndimage.binary_dilation(mask, iterations=NEAR)
    voxels = np.argwhere(wide & ~ndimage.binary_erosion(mask, iterations=NEAR))
    if not len(voxels):
        return None
    z, y, x = voxels[rng.integers(len(voxels))].tolist()
    return z, y, x


CHOOSERS: dict[str, Chooser] = {
    "the evaluator's": by_the_truth,
    "suggested": suggested,
    "random, near the border": at_random,
}


def play_object(
    predictor: SamPredictor3D, labelled: LabelledCase, label: int, choose: Chooser
) -> tuple[list[float], list[tuple[float, float]]]:
    """DSC after each prompt; and the estimates of the IoU, with what it is."""
    truth, case = labelled.truth == label, labelled.case
    rng = np.random.default_rng(label)
    predictor.reset(1)
    box = case.objects[label - 1].box if case.rounds else None
    if box is not None:
        found = predictor.predict(box=(*box.start, *box.stop))
    else:
        first = largest_error_click(truth, np.zeros_like(truth))
        assert first is not None
        found = predictor.predict([first.point], [1])
    curve, estimates = [], []
    for i in range(ROUNDS):
        point = choose(found, truth, rng) if i else None
        if point is not None:
            found = predictor.predict([point], [int(truth[point])])
        mask = found.mask
        curve.append(dsc(truth, mask))
        estimates.append((found.iou, float((truth & mask).sum() / (truth | mask).sum())))
    return curve, estimates


def print_reliability(estimates: np.ndarray, true_iou: Callable[[float], float]) -> None:
    """Tables of (N, 2) estimates and true values, the estimates also by a line."""
    raw, true = estimates.T
    lined = np.array([true_iou(value) for value in raw])
    print_header("estimate of the IoU", "raw", "it is", "by the checkpoint's line", "it is")
    for low, high in zip(BINS[:-1], BINS[1:], strict=True):
        cells = []
        for values in (raw, lined):
            is_in = (values >= low) & (values < high + (high == 1))
            mean = f"{true[is_in].mean():.3f}" if is_in.any() else "–"
            cells += [str(is_in.sum()), mean]
        print_row(f"{low:.1f} to {high:.1f}", *cells)
    errors = (f"{np.abs(values - true).mean():.3f}" for values in (raw, lined))
    print_row("mean error", *(cell for error in errors for cell in (error, "")))
    print(f"\nCorrelation {np.corrcoef(raw, true)[0, 1]:.2f}.")
    is_doubtful = lined < PROBABLY_WRONG
    if is_doubtful.any() and not is_doubtful.all():
        share = (true[is_doubtful] < POOR).mean()
        print(
            f"Reported as probably wrong: {is_doubtful.mean():.1%}, with a mean IoU of "
            f"{true[is_doubtful].mean():.3f} (others {true[~is_doubtful].mean():.3f}); {share:.0%} "
            f"of them have an IoU below {POOR}, and {is_doubtful[true < POOR].mean():.0%} of all "
            "such are reported."
        )


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, or 2 if there is nothing to measure."""
    paths = sorted(args.cases.rglob("*.npz"))
    if not paths:
        print(f"expected cases in {args.cases}", file=sys.stderr)
        return 2
    print(f"{origin('cpu')}\n")
    read = read_checkpoint(args.checkpoint)
    settings = adaptive_settings(read)
    unlined = replace(settings, iou_slope=1.0, iou_intercept=0.0)
    predictor = SamPredictor3D(build_model(read), unlined)
    curves: dict[str, list[list[float]]] = defaultdict(list)
    estimates: list[tuple[float, float]] = []
    for path in paths:
        labelled = read_labelled_case(path)
        predictor.set_image(labelled.case.image, labelled.case.spacing)
        for label in range(1, min(len(labelled.labels), args.objects) + 1):
            for name, choose in CHOOSERS.items():
                curve, own = play_object(predictor, labelled, label, choose)
                curves[name].append(curve)
                if choose is by_the_truth:
                    estimates += own
    found = np.array(estimates)
    slope, intercept = np.polyfit(found[:, 0], found[:, 1], 1)
    print_reliability(found, settings.true_iou)
    print(f"Line that fits these best: slope {slope:.3f}, intercept {intercept:.3f}.\n")
    print_header("clicks", "objects", "first", *(f"+ {i}" for i in range(1, ROUNDS)))
    for name, rows in curves.items():
        print_row(name, len(rows), *(f"{value:.3f}" for value in np.mean(rows, axis=0)))
    return 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
