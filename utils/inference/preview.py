"""A picture of a segmentation: three planes through each object, with prompts and outlines."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segment_anything.prompts import Index3, Prompts, Region
from utils.formats.atomic import atomic_path
from utils.formats.case import Case
from utils.formats.scan import FILE_AXES, Axis

# matplotlib is imported where it is used: it takes a second.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#ff5a4f", "#4fc3ff", "#ffd24f", "#7dff6b", "#ff7ef2", "#4fffd8", "#ff9c3a")
INCHES = 2.2  # of a plane
DPI = 100
SHOWN = 1.6  # sides of the planes over the longest side of the object
MIN_MM = 20.0  # of the planes' sides
NEAR = 0.5  # voxels, within which a click lies in a plane; others are drawn faint
PLANES = ("axial", "coronal", "sagittal")  # across z, y, x; in volumes turned to LPS


def colour_of(label: int) -> str:
    return COLOURS[(label - 1) % len(COLOURS)]


def draw_slice(
    axes: "Axes",
    case: Case,
    seg: np.ndarray,
    axis: int,
    at: int,
    truth: np.ndarray | None = None,
    shown: int = 0,
    window: np.ndarray | None = None,
) -> None:
    """A slice of a case with its boxes (dotted), outlines (coloured), and the truth's (dashed).

    Args:
        axes: To draw on, in voxels.
        case: Its image and prompts.
        seg: (D, H, W) labels.
        axis: That the slice lies across: 0, 1, 2 for z, y, x.
        at: Its index.
        truth: As `seg`, if there is one.
        shown: The object that it is about; 0: all of them.
        window: (2, 3) bounds in voxels, of what is to be seen; None: the whole slice. A picture
            of many objects would not fit into memory with whole slices.
    """
    down, right = (i for i in range(3) if i != axis)
    low, high = np.array([(0, 0, 0), case.shape]) if window is None else window
    low, high = (np.clip(end, 0, case.shape).astype(int) for end in (np.floor(low), np.ceil(high)))
    part = tuple(at if i == axis else slice(low[i], max(high[i], low[i] + 1)) for i in range(3))
    image, found = (volume[part].copy() for volume in (case.image, seg))
    left, right_end = low[right] - 0.5, low[right] + image.shape[1] - 0.5
    top, bottom = low[down] - 0.5, low[down] + image.shape[0] - 0.5
    axes.imshow(
        image,
        extent=(left, right_end, *((bottom, top) if axis == 0 else (top, bottom))),
        cmap="gray",
        vmin=0,
        vmax=255,
        aspect=case.spacing[down] / case.spacing[right],
        origin="upper" if axis == 0 else "lower",  # the head is up
        interpolation="nearest",
    )
    true = np.zeros_like(found) if truth is None else truth[part]
    corner = (int(low[down]), int(low[right]))
    present = {*np.unique(found).tolist(), *np.unique(true).tolist()}
    for label, prompts in enumerate(case.objects, 1):
        is_shown = shown in (0, label)
        if label in present:
            _outline(axes, true == label, corner, "white", "--", 0.8)
            width = 1.6 if is_shown else 0.8
            _outline(axes, found == label, corner, colour_of(label), "-", width)
        if is_shown:
            _draw_box(axes, prompts, axis, at, colour_of(label))
    axes.set(xticks=[], yticks=[], facecolor="black")


def _outline(
    axes: "Axes", mask: np.ndarray, corner: tuple[int, int], colour: str, style: str, width: float
) -> None:
    """Of a mask whose first pixel is at `corner` (down, right)."""
    held = [np.flatnonzero(mask.any(axis=other)) for other in (1, 0)]
    if not len(held[0]):
        return
    # What is drawn stays in memory until the picture is done: no more than the mask's own part.
    rows, columns = (np.arange(ends[0] - 1, ends[-1] + 2) for ends in held)
    part = np.pad(mask[held[0][0] : held[0][-1] + 1, held[1][0] : held[1][-1] + 1], 1)
    options: dict[str, Any] = {"colors": colour, "linewidths": width, "linestyles": style}
    axes.contour(columns + corner[1], rows + corner[0], part, [0.5], **options)


def _draw_box(axes: "Axes", prompts: Prompts, axis: int, at: int, colour: str) -> None:
    from matplotlib.patches import Rectangle

    box = prompts.box
    if box is None or not box.start[axis] <= at < box.stop[axis]:
        return
    down, right = (i for i in range(3) if i != axis)
    corner = (box.start[right] - 0.5, box.start[down] - 0.5)
    width, height = (box.stop[i] - box.start[i] for i in (right, down))
    axes.add_patch(Rectangle(corner, width, height, fill=False, ec=colour, lw=1.0, ls=":"))


def _draw_clicks(axes: "Axes", prompts: Prompts, axis: int, at: int) -> None:
    """Green + where it is said to be, red x where not."""
    down, right = (i for i in range(3) if i != axis)
    for click in prompts.clicks:
        alpha = 1.0 if abs(click.point[axis] - at) <= NEAR else 0.35
        marker, colour = ("+", "#39ff14") if click.is_foreground else ("x", "#ff3131")
        x, y = click.point[right], click.point[down]
        axes.plot(x, y, marker, color="black", ms=9, mew=3.2, alpha=alpha)
        axes.plot(x, y, marker, color=colour, ms=8, mew=1.6, alpha=alpha)


def shown_region(
    case: Case, seg: np.ndarray, label: int, held: Region | None
) -> tuple[Index3, np.ndarray]:
    """Where the three planes through an object cross, and (2, 3) bounds of a cube that is shown.

    The cube may reach beyond the volume. `held` is the region of `seg` that has all of the object,
    None if nothing was found.
    """
    prompts = case.objects[label - 1]
    shape = np.array(case.shape)
    points = [np.array(click.point) for click in prompts.clicks]
    bounds = [np.array([point, point + 1]) for point in points]
    if prompts.box is not None:
        bounds.append(np.array([prompts.box.start, prompts.box.stop]))
    if held is not None:
        bounds.append(np.array([[part.start for part in held], [part.stop for part in held]]))
        inside = seg[held] == label
        others = ((1, 2), (0, 2), (0, 1))
        largest = [int(inside.sum(axis=other).argmax()) for other in others]
        centre = [i + part.start for i, part in zip(largest, held, strict=True)]
    elif bounds:  # nothing was found: look where it was asked for
        centre = [int(i) for i in bounds[-1].mean(axis=0)]
    else:
        centre, bounds = (shape // 2).tolist(), [np.array([(0, 0, 0), case.shape])]
    low, high = (f([b[i] for b in bounds], axis=0) for i, f in ((0, np.min), (1, np.max)))
    mm = max(SHOWN * ((high - low) * case.spacing).max(), MIN_MM)
    reach = mm / np.array(case.spacing) / 2
    z, y, x = (int(np.clip(i, 0, n - 1)) for i, n in zip(centre, shape, strict=True))
    middle = (low + high) / 2
    return (z, y, x), np.array([middle - reach, middle + reach])


def draw_preview(
    case: Case, seg: np.ndarray, file_axes: tuple[Axis, Axis, Axis] = FILE_AXES
) -> "Figure":
    """A row of three planes for each object; two or three objects in a row where they are many.

    Args:
        case: Its image and prompts.
        seg: (D, H, W) labels.
        file_axes: Those along the axes of the case; slices are numbered as in the file.
    """
    from matplotlib.figure import Figure
    from scipy import ndimage

    count = len(case.objects)
    across = 1 if count <= 4 else 2 if count <= 12 else 3
    rows = -(-count // across)
    figure = Figure(
        figsize=(3 * across * INCHES, rows * (INCHES + 0.25) + 0.3), dpi=DPI, facecolor="white"
    )
    grid = figure.subplots(rows, 3 * across, squeeze=False)
    for axes in grid.flat[3 * count :]:
        axes.set_axis_off()
    regions = ndimage.find_objects(seg, max_label=count)
    for label, (prompts, held) in enumerate(zip(case.objects, regions, strict=True), 1):
        row, column = divmod(label - 1, across)
        centre, window = shown_region(case, seg, label, held)
        low, high = window
        for axis in range(3):
            axes = grid[row, 3 * column + axis]
            draw_slice(axes, case, seg, axis, centre[axis], shown=label, window=window)
            _draw_clicks(axes, prompts, axis, centre[axis])
            down, right = (i for i in range(3) if i != axis)
            axes.set_xlim(low[right] - 0.5, high[right] - 0.5)
            ends = (low[down] - 0.5, high[down] - 0.5)
            axes.set_ylim(*(ends[::-1] if axis == 0 else ends))
            name, is_flipped = file_axes[axis]
            index = case.shape[axis] - 1 - centre[axis] if is_flipped else centre[axis]
            title = f"{PLANES[axis]} {name} = {index}"
            axes.set_title(title, fontsize=7, color="0.35", loc="right", pad=2)
        found = 0 if held is None else np.count_nonzero(seg[held] == label)
        volume = found * np.prod(case.spacing) / 1000
        grid[row, 3 * column].set_title(
            f"object {label}: {volume:.3g} ml", fontsize=8, loc="left", color="black", pad=2
        )
    figure.suptitle(case.name, fontsize=9, x=0.01, ha="left", parse_math=False)
    figure.tight_layout(rect=(0, 0, 1, 0.995))
    return figure


def write_preview(
    path: Path, case: Case, seg: np.ndarray, file_axes: tuple[Axis, Axis, Axis] = FILE_AXES
) -> None:
    """Write `draw_preview` as a .png file, whole or not at all."""
    figure = draw_preview(case, seg, file_axes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
