"""A picture of a segmentation: three slices through each object, with prompts and outlines."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from segment_anything.prompts import Index3, Prompts, Region
from utils.formats.case import Case
from utils.formats.scan import FILE_AXES, Axis
from utils.inference.drawing import (
    TRUTH_COLOUR,
    VIEWS,
    Colour,
    SlicePicture,
    colour_of,
    slice_axes,
    write,
    write_png,
)

TILE = 220  # pixels of a slice's sides
CAPTION = 20  # pixels above it
GAP = 6  # pixels between slices, and round them
SHOWN = 1.6  # sides of the slices over the longest side of the object
MIN_MM = 20.0  # of the slices' sides
TEXT: Colour = (40, 40, 40)
FAINT_TEXT: Colour = (120, 120, 120)


def draw_slice(
    case: Case,
    seg: np.ndarray,
    axis: int,
    at: int,
    bounds: np.ndarray,
    mm_per_pixel: float,
    truth: np.ndarray | None = None,
    shown: int = 0,
) -> SlicePicture:
    """A slice of a case with its boxes (dotted), outlines (coloured), and the truth's (dashed).

    Args:
        case: Its image and prompts.
        seg: (D, H, W) labels.
        axis: That the slice lies across: 0, 1, 2 for z, y, x.
        at: Its index.
        bounds: (2, 3) edges of what is shown, in voxels; no more than that is read.
        mm_per_pixel: Scale of the picture.
        truth: As `seg`, if there is one.
        shown: The object that it is about; 0: all of them.
    """
    down, right = slice_axes(axis)
    low, high = (
        np.clip(end, 0, case.shape).astype(int)
        for end in (np.floor(bounds[0]) - 1, np.ceil(bounds[1]) + 1)
    )
    part = tuple(at if i == axis else slice(low[i], max(high[i], low[i] + 1)) for i in range(3))
    origin = (int(low[down]), int(low[right]))
    scale = (case.spacing[down] / mm_per_pixel, case.spacing[right] / mm_per_pixel)
    image = case.image[part].astype(np.float32)
    picture = SlicePicture(image, origin, bounds[:, [down, right]], scale, axis != 0)
    found = seg[part]
    true = np.zeros_like(found) if truth is None else truth[part]
    present = {*np.unique(found).tolist(), *np.unique(true).tolist()}
    for label, prompts in enumerate(case.objects, 1):
        is_shown = shown in (0, label)
        if label in present:
            picture.outline(found == label, colour_of(label), 2 if is_shown else 1)
            picture.outline(true == label, TRUTH_COLOUR, is_dashed=True)
        box = prompts.box
        if is_shown and box is not None and box.start[axis] <= at < box.stop[axis]:
            start, stop = (np.array(end)[[down, right]] for end in (box.start, box.stop))
            picture.box(start, stop, colour_of(label), is_faint=False)
    return picture


def draw_clicks(picture: SlicePicture, prompts: Prompts, axis: int, at: int) -> None:
    """Draw an object's clicks, those of other slices faint."""
    down, right = slice_axes(axis)
    for click in prompts.clicks:
        position = (click.point[down], click.point[right])
        picture.click(position, click.is_foreground, is_faint=click.point[axis] != at)


def shown_bounds(
    case: Case, seg: np.ndarray, label: int, held: Region | None
) -> tuple[Index3, np.ndarray]:
    """Where the three slices through an object cross, and (2, 3) bounds of a cube that is shown.

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
) -> np.ndarray:
    """A row of three slices for each object; two or three objects in a row where they are many.

    Args:
        case: Its image and prompts.
        seg: (D, H, W) labels.
        file_axes: Those along the axes of the case; slices are numbered as in the file.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    count = len(case.objects)
    across = 1 if count <= 4 else 2 if count <= 12 else 3
    height, width = TILE + CAPTION + GAP, 3 * (TILE + GAP) + GAP
    pixels = np.full((-(-count // across) * height, across * width, 3), 255, np.uint8)
    regions = ndimage.find_objects(seg, max_label=count)
    for label, held in enumerate(regions, 1):
        row, column = divmod(label - 1, across)
        tiles = pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]
        _draw_object(tiles, case, seg, label, held, file_axes)
    return pixels


def _draw_object(
    pixels: np.ndarray,
    case: Case,
    seg: np.ndarray,
    label: int,
    held: Region | None,
    file_axes: tuple[Axis, Axis, Axis],
) -> None:
    """Draw three slices through an object side by side, and what they are, on white pixels."""
    centre, bounds = shown_bounds(case, seg, label, held)
    mm_per_pixel = float(((bounds[1] - bounds[0]) * case.spacing)[0]) / TILE
    for axis in range(3):
        picture = draw_slice(case, seg, axis, centre[axis], bounds, mm_per_pixel, shown=label)
        draw_clicks(picture, case.objects[label - 1], axis, centre[axis])
        left = GAP + axis * (TILE + GAP)
        pixels[CAPTION : CAPTION + TILE, left : left + TILE] = picture.pixels[:TILE, :TILE]
        name, is_flipped = file_axes[axis]
        index = case.shape[axis] - 1 - centre[axis] if is_flipped else centre[axis]
        title, end = f"{VIEWS[axis]} {name} = {index}", (left + TILE, CAPTION - 6)
        write(pixels, title, end, FAINT_TEXT, is_right=True)
    found = 0 if held is None else np.count_nonzero(seg[held] == label)
    volume = found * np.prod(case.spacing) / 1000
    write(pixels, f"object {label}: {volume:.3g} ml", (GAP, CAPTION - 6), TEXT)


def write_preview(
    path: Path, case: Case, seg: np.ndarray, file_axes: tuple[Axis, Axis, Axis] = FILE_AXES
) -> None:
    """Write `draw_preview` as a .png file, whole or not at all."""
    write_png(path, draw_preview(case, seg, file_axes))
