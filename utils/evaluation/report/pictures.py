"""The report's figures, in Okabe and Ito's colours, which most people tell apart."""

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from utils.evaluation.protocol import ROUNDS
from utils.evaluation.report.slices import ObjectSlices

TRUTH, PREDICTION, BOX = "#56B4E9", "#E69F00", "#FFFFFF"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"

PICTURE_WIDTH = 9.0  # inches
NAMES = (("axial", "z"), ("coronal", "y"), ("sagittal", "x"))


def draw_slices(planes: ObjectSlices, clicks: np.ndarray) -> bytes:
    """Three slices through an object with the contours of truth and prediction, and the prompts.

    Prompts that lie in another slice are drawn fainter; numbers are the rounds of the clicks.

    Args:
        planes: The slices.
        clicks: (ROUNDS, 4) as `Result.clicks` holds them for the object.

    Returns:
        A PNG.
    """
    slices = (planes.across_z, planes.across_y, planes.across_x)
    sizes = []  # width and height in mm
    for axis, (_, rows, columns) in enumerate(part.shape for part in slices):
        row_axis, column_axis = (i for i in range(3) if i != axis)
        sizes.append((columns * planes.spacing[column_axis], rows * planes.spacing[row_axis]))
    widths = [width / height for width, height in sizes]  # at the same height
    height = min(PICTURE_WIDTH / sum(widths), 3.6)
    figure = Figure((height * sum(widths) + 0.1, height + 0.25), dpi=110, facecolor="black")
    grid = figure.add_gridspec(
        1,
        3,
        width_ratios=widths,
        left=0,
        right=1,
        bottom=0,
        top=height / (height + 0.25),
        wspace=0.02,
    )
    for axis in range(3):
        _draw_slice(figure.add_subplot(grid[axis]), slices[axis], axis, planes, clicks)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw_slice(
    ax: Axes, part: np.ndarray, axis: int, planes: ObjectSlices, clicks: np.ndarray
) -> None:
    image, truth, prediction = part
    row_axis, column_axis = (i for i in range(3) if i != axis)
    y0, x0 = planes.start[row_axis], planes.start[column_axis]
    extent = (x0 - 0.5, x0 + image.shape[1] - 0.5, y0 + image.shape[0] - 0.5, y0 - 0.5)
    aspect = planes.spacing[row_axis] / planes.spacing[column_axis]
    ax.imshow(image, cmap="gray", vmin=0, vmax=255, extent=extent, aspect=aspect)
    for mask, colour in ((truth, TRUTH), (prediction, PREDICTION)):
        if mask.any():
            # Padded, so that the contour closes where the object meets the edge.
            rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
            ax.contour(
                columns + x0, rows + y0, np.pad(mask, 1), [0.5], colors=[colour], linewidths=1.5
            )
    if len(planes.box):
        start, stop = planes.box[:, [row_axis, column_axis]] - 0.5
        inside = planes.box[0, axis] <= planes.centre[axis] < planes.box[1, axis]
        ax.add_patch(
            Rectangle(
                start[::-1],
                *(stop - start)[::-1],
                fill=False,
                color=BOX,
                linestyle=(0, (4, 3)),
                linewidth=1,
                alpha=0.9 if inside else 0.35,
            )
        )
    for index in range(ROUNDS):
        if clicks[index, 0] >= 0:
            point = clicks[index, 1:]
            alpha = 1.0 if point[axis] == planes.centre[axis] else 0.6
            _draw_click(ax, point[column_axis], point[row_axis], index, clicks[index, 0], alpha)
    ax.set_xlim(extent[:2])
    # Stored slices go from the feet up, so that the head is on top.
    ax.set_ylim(extent[2:] if axis == 0 else extent[:1:-1])
    ax.axis("off")
    name, letter = NAMES[axis]
    ax.set_title(f"{name}, {letter} = {planes.centre[axis]}", color="white", fontsize=8, pad=3)


def _draw_click(ax: Axes, x: float, y: float, index: int, kind: int, alpha: float) -> None:
    """A plus for foreground, a minus for background, and the round's number."""
    outline = [withStroke(linewidth=2.5, foreground="black", alpha=alpha)]
    style: dict[str, Any] = dict(color="white", alpha=alpha, path_effects=outline, clip_on=True)
    marker = "+" if kind else "_"
    ax.plot([x], [y], marker=marker, markersize=9, markeredgewidth=2, **style)
    ax.annotate(
        str(index),
        (x, y),
        (4, 3),
        textcoords="offset points",
        fontsize=8.5,
        annotation_clip=True,
        **style,
    )


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
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    return svg[svg.index("<svg") :]
