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

from utils.case import LabelledCase, read_labelled_case  # noqa: E402
from utils.published import SMALL  # noqa: E402

COLOURS = ("#ff5a4f", "#4fc3ff", "#ffd24f", "#7dff6b", "#ff7ef2", "#4fffd8", "#ff9c3a")


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


def draw_plane(axes, labelled: LabelledCase, seg: np.ndarray, axis: int) -> None:
    """A slice with the masks' outlines: coloured what was found, dashed white the truth."""
    case, at = labelled.case, best_plane(labelled.truth, axis)
    down, right = (i for i in range(3) if i != axis)
    aspect = case.spacing[down] / case.spacing[right]
    image, found, truth = (
        np.take(volume, at, axis=axis) for volume in (case.image, seg, labelled.truth)
    )
    origin = "upper" if axis == 0 else "lower"  # cranial is up
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, aspect=aspect, origin=origin)
    for label, prompts in enumerate(case.objects, 1):
        colour = COLOURS[(label - 1) % len(COLOURS)]
        if (truth == label).any():
            axes.contour(truth == label, [0.5], colors="white", linewidths=0.8, linestyles="--")
        if (found == label).any():
            axes.contour(found == label, [0.5], colors=colour, linewidths=1.6)
        box = prompts.box
        if box is not None and box.start[axis] <= at < box.stop[axis]:
            x, y = box.start[right] - 0.5, box.start[down] - 0.5
            width, height = box.stop[right] - x - 0.5, box.stop[down] - y - 0.5
            axes.add_patch(
                plt.Rectangle((x, y), width, height, fill=False, ec=colour, lw=0.8, ls=":")
            )
    axes.set_axis_off()


def main(args: argparse.Namespace) -> None:
    from utils.checkpoint import build_model, read_checkpoint, settings_of
    from utils.policy import make_method
    from utils.protocol import play, predict_with

    checkpoint = read_checkpoint(args.checkpoint)
    segment = make_method(build_model(checkpoint), checkpoint.policy, settings_of(checkpoint))
    paths = sorted((ROOT / "inputs").glob("*.npz"))
    figure, grid = plt.subplots(2 * len(paths), 3, figsize=(8, 5.4 * len(paths)), dpi=100)
    figure.set_facecolor("white")
    for i, path in enumerate(paths):
        labelled = read_labelled_case(path, ROOT / "data/sample_gts" / path.name)
        rounds = list(play(labelled, predict_with(segment)))
        curve = [played.scores[:, 0].mean() for played, _ in rounds]
        print(path.stem, " ".join(f"{value:.3f}" for value in curve))
        for row, (when, number) in enumerate((("boxes alone", 0), ("5 clicks per object", -1))):
            for axis, axes in enumerate(grid[2 * i + row]):
                draw_plane(axes, labelled, rounds[number][1], axis)
            title = f"{path.stem}, {when}: mean DSC {curve[number]:.2f}"
            grid[2 * i + row][0].set_title(title, fontsize=9, loc="left")
    figure.tight_layout()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output)


if __name__ == "__main__":
    main(get_args_parser().parse_args())
