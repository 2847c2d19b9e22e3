"""The sample cases as a picture: boxes, what the network finds, and the truth.

    python bench/draw_samples.py --output bench/results/small/samples.png

Each case after its boxes alone and after five clicks per object, by the official protocol, in the
axial, the coronal and the sagittal plane that show most of it. Prints the mean DSC of each round.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.formats.case import read_labelled_case  # noqa: E402
from utils.inference.preview import draw_slice  # noqa: E402
from utils.inference.published import SMALL  # noqa: E402


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "ckpt" / SMALL)
    parser.add_argument("--output", type=Path, required=True, help=".png file")
    return parser


def best_plane(truth: np.ndarray, axis: int) -> int:
    """That with the most objects, and of these the one with the largest share of each."""
    planes = np.moveaxis(truth, axis, 0).reshape(truth.shape[axis], -1)
    counts = np.array([np.bincount(plane, minlength=truth.max() + 1)[1:] for plane in planes])
    shares = counts / counts.max(axis=0)
    return int(((counts > 0).sum(axis=1) + shares.mean(axis=1)).argmax())


def main(args: argparse.Namespace) -> None:
    from utils.evaluation.protocol import play, timed_predictor
    from utils.inference.checkpoint import adaptive_settings, build_model, read_checkpoint
    from utils.inference.method import make_segmenter

    checkpoint = read_checkpoint(args.checkpoint)
    segment = make_segmenter(
        build_model(checkpoint), checkpoint.policy, adaptive_settings(checkpoint)
    )
    paths = sorted((ROOT / "inputs").glob("*.npz"))
    figure, grid = plt.subplots(2 * len(paths), 3, figsize=(8, 5.4 * len(paths)), dpi=100)
    figure.set_facecolor("white")
    for i, path in enumerate(paths):
        labelled = read_labelled_case(path, ROOT / "data/sample_gts" / path.name)
        rounds = list(play(labelled, timed_predictor(segment)))
        curve = [played.scores[:, 0].mean() for played, _ in rounds]
        print(path.stem, " ".join(f"{value:.3f}" for value in curve))
        for row, (when, number) in enumerate((("boxes alone", 0), ("5 clicks per object", -1))):
            for axis, axes in enumerate(grid[2 * i + row]):
                at = best_plane(labelled.truth, axis)
                draw_slice(axes, labelled.case, rounds[number][1], axis, at, labelled.truth)
            title = f"{path.stem}, {when}: mean DSC {curve[number]:.2f}"
            grid[2 * i + row][0].set_title(title, fontsize=9, loc="left")
    figure.tight_layout()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output)


if __name__ == "__main__":
    main(get_args_parser().parse_args())
