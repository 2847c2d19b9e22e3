"""The sample cases as a picture: boxes, what the network finds, and the truth.

    python bench/draw_samples.py --output bench/results/small/samples.png

Each case after its boxes alone and after five clicks per object, by the official protocol, in the
axial, the coronal and the sagittal slice that show most of it. Prints the mean DSC of each round.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.evaluation.protocol import play, timed_predictor  # noqa: E402
from utils.formats.case import LabelledCase, read_labelled_case  # noqa: E402
from utils.inference.checkpoint import adaptive_settings, build_model, read_checkpoint  # noqa: E402
from utils.inference.drawing import write, write_png  # noqa: E402
from utils.inference.method import make_segmenter  # noqa: E402
from utils.inference.preview import draw_slice  # noqa: E402
from utils.inference.published import SMALL  # noqa: E402

HEIGHT, CAPTION, GAP = 250, 24, 6  # pixels of the slices, above them, and round them
WHITE, TEXT = 255, (40, 40, 40)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "ckpt" / SMALL)
    parser.add_argument("--output", type=Path, required=True, help=".png file")
    return parser


def best_slice(truth: np.ndarray, axis: int) -> int:
    """The index of that with the most objects, and of these with the largest share of each."""
    slices = np.moveaxis(truth, axis, 0).reshape(truth.shape[axis], -1)
    counts = np.array([np.bincount(part, minlength=truth.max() + 1)[1:] for part in slices])
    shares = counts / counts.max(axis=0)
    return int(((counts > 0).sum(axis=1) + shares.mean(axis=1)).argmax())


def draw_row(labelled: LabelledCase, seg: np.ndarray, title: str) -> np.ndarray:
    """Three whole slices of a case under a title, (H, W, 3) uint8."""
    case, tiles = labelled.case, []
    bounds = np.array([(0, 0, 0), case.shape], float)
    for axis in range(3):
        height_mm = case.shape[1 if axis == 0 else 0] * case.spacing[1 if axis == 0 else 0]
        at = best_slice(labelled.truth, axis)
        picture = draw_slice(case, seg, axis, at, bounds, height_mm / HEIGHT, labelled.truth)
        tile = np.full((HEIGHT, picture.pixels.shape[1], 3), WHITE, np.uint8)
        tile[: len(picture.pixels)] = picture.pixels[:HEIGHT]
        tiles.append(np.pad(tile, ((CAPTION, GAP), (GAP, 0), (0, 0)), constant_values=WHITE))
    row = np.concatenate(tiles, axis=1)
    write(row, title, (GAP, CAPTION - 7), TEXT, size=0.45)
    return row


def main(args: argparse.Namespace) -> None:
    checkpoint = read_checkpoint(args.checkpoint)
    segment = make_segmenter(
        build_model(checkpoint), checkpoint.policy, adaptive_settings(checkpoint)
    )
    rows = []
    for path in sorted((ROOT / "inputs").glob("*.npz")):
        labelled = read_labelled_case(path, ROOT / "data/sample_gts" / path.name)
        rounds = list(play(labelled, timed_predictor(segment)))
        curve = [played.scores[:, 0].mean() for played, _ in rounds]
        print(path.stem, " ".join(f"{value:.3f}" for value in curve))
        for when, number in (("boxes alone", 0), ("5 clicks per object", -1)):
            title = f"{path.stem}, {when}: mean DSC {curve[number]:.2f}"
            rows.append(draw_row(labelled, rounds[number][1], title))
    width = max(row.shape[1] for row in rows) + GAP
    missing = [((0, 0), (0, width - row.shape[1]), (0, 0)) for row in rows]
    padded = [np.pad(r, m, constant_values=WHITE) for r, m in zip(rows, missing, strict=True)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_png(args.output, np.concatenate(padded))


if __name__ == "__main__":
    main(get_args_parser().parse_args())
