"""The report's figures: slices by OpenCV; curves by matplotlib, in Okabe and Ito's colours."""

import io
import warnings

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from utils.evaluation.protocol import ROUNDS
from utils.evaluation.report.slices import ObjectSlices
from utils.inference.drawing import (
    OBJECT_COLOURS,
    TRUTH_COLOUR,
    VIEWS,
    SlicePicture,
    encode_png,
    slice_axes,
    write,
)

PREDICTION_COLOUR = OBJECT_COLOURS[0]
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"

PICTURE_WIDTH, MAX_HEIGHT = 1000, 400  # pixels of three slices side by side
CAPTION, GAP = 24, 6  # pixels above each, and between them


def draw_slices(slices: ObjectSlices, clicks: np.ndarray) -> bytes:
    """Three slices through an object with the outlines of truth and prediction, and the prompts.

    Prompts that lie in another slice are drawn fainter; numbers are the rounds of the clicks.

    Args:
        slices: Cut through the object.
        clicks: (ROUNDS, 4) as `Result.clicks` holds them for the object.

    Returns:
        The content of a .png file.
    """
    parts = (slices.across_z, slices.across_y, slices.across_x)
    sides = [  # height and width in mm
        np.array(part.shape[1:]) * slices.spacing[list(slice_axes(axis))]
        for axis, part in enumerate(parts)
    ]
    shares = [width / height for height, width in sides]  # of widths at the same height
    height = int(min((PICTURE_WIDTH - 2 * GAP) / sum(shares), MAX_HEIGHT))
    pictures = []
    for axis, (part, (mm, _)) in enumerate(zip(parts, sides, strict=True)):
        picture = _draw_slice(part, axis, mm / height, slices, clicks).pixels[:height]
        caption = np.zeros((CAPTION, picture.shape[1], 3), np.uint8)
        title = f"{VIEWS[axis]}, {'zyx'[axis]} = {slices.centre[axis]}"
        write(caption, title, (2, CAPTION - 7), (255, 255, 255))
        missing = ((0, height - len(picture)), (0, GAP if axis < 2 else 0), (0, 0))
        pictures.append(np.pad(np.concatenate([caption, picture]), missing))
    return encode_png(np.concatenate(pictures, axis=1))


def _draw_slice(
    part: np.ndarray, axis: int, mm_per_pixel: float, slices: ObjectSlices, clicks: np.ndarray
) -> SlicePicture:
    """One of the slices: (3, h, w) image, truth and prediction."""
    image, truth, prediction = part
    axes = list(slice_axes(axis))
    start = slices.start[axes]
    bounds = np.array([start, start + image.shape], float)
    down, right = slices.spacing[axes] / mm_per_pixel
    picture = SlicePicture(
        image.astype(np.float32), (int(start[0]), int(start[1])), bounds, (down, right), axis != 0
    )
    picture.outline(prediction > 0, PREDICTION_COLOUR, 2)
    picture.outline(truth > 0, TRUTH_COLOUR, is_dashed=True)
    centre = slices.centre[axis]
    if len(slices.box):
        low, high = slices.box[:, axes]
        is_inside = slices.box[0, axis] <= centre < slices.box[1, axis]
        picture.box(low, high, PREDICTION_COLOUR, is_faint=not is_inside)
    for index, (kind, *point) in enumerate(clicks.tolist()):
        if kind >= 0:
            position = (point[axes[0]], point[axes[1]])
            picture.click(position, kind == 1, is_faint=point[axis] != centre, text=str(index))
    return picture


# Names are as people write them: text that the browser's fonts show, and no formulas between $.
as_written = rc_context({"svg.fonttype": "none", "text.parse_math": False})


@as_written
def draw_curves(groups: dict[str, np.ndarray], metric: str) -> str:
    """A metric against clicks.

    Args:
        groups: (cases, ROUNDS) by name; NaN in a round that was not played.
        metric: Its name.

    Returns:
        An SVG.
    """
    figure = Figure((4.6, 3.4), layout="constrained")
    ax = figure.add_subplot()
    for i, (name, curves) in enumerate(groups.items()):
        ax.plot(
            range(ROUNDS),
            curves.mean(axis=0),
            color=SERIES[i % len(SERIES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=4.5,
            linewidth=1.6,
            label=f"{name} ({len(curves)})",
        )
    ax.set(xlabel="clicks per object", ylabel=metric, ylim=(0, 1))
    ax.set_xticks(range(ROUNDS), ["box", *map(str, range(1, ROUNDS))])
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=3)
    return _as_svg(figure, ax)


@as_written
def draw_seconds(groups: dict[str, np.ndarray], limit: float) -> str:
    """Seconds per object of each case against the limit, a row per group -> an SVG."""
    figure = Figure((9.2, 0.9 + 0.28 * len(groups)), layout="constrained")
    ax = figure.add_subplot()
    rng = np.random.default_rng(0)
    for row, seconds in enumerate(groups.values()):
        spread = row + rng.uniform(-0.15, 0.15, len(seconds))
        ax.plot(
            np.maximum(seconds, 1e-2), spread, "o", color=SERIES[0], alpha=0.6, markersize=4, mew=0
        )
    ax.axvline(limit, color=SERIES[1], linewidth=1.4)
    ax.annotate(
        f"limit {limit:g} s",
        (limit, 1),
        (-4, 3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        color=SERIES[1],
        fontsize=8,
    )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set_xlim(min(0.05, *(s.min() / 2 for s in groups.values())), max(limit * 2, 200))
    ax.set_yticks(range(len(groups)), list(groups), fontsize=8)
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.set_xlabel("seconds per object, all rounds")
    return _as_svg(figure, ax)


def _as_svg(figure: Figure, ax: Axes) -> str:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # only guesses how wide they are
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    return svg[svg.index("<svg") :]
