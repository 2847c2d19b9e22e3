"""Slices of a volume as pictures: grey, with outlines, boxes and clicks; by OpenCV.

Pictures are (H, W, 3) uint8 arrays, RGB. Positions in a slice are (row, column) in voxels, their
centres at whole numbers; bounds are (2, 2) arrays of the first and last edge along both.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.formats.atomic import atomic_write

Colour = tuple[int, int, int]

# Okabe and Ito's, which most people tell apart, some brighter for a black background.
OBJECT_COLOURS: tuple[Colour, ...] = (
    *((230, 159, 0), (86, 180, 233), (0, 200, 140), (240, 228, 66)),
    *((240, 110, 40), (225, 140, 190), (90, 130, 255)),
)
TRUTH_COLOUR: Colour = (255, 255, 255)
FOREGROUND_COLOUR: Colour = (57, 255, 20)
BACKGROUND_COLOUR: Colour = (255, 60, 60)
FAINT = 0.55  # opacity of what lies in another slice
SHIFT = 4  # bits of OpenCV's coordinates behind the point
DASH = 5  # pixels
VIEWS = ("axial", "coronal", "sagittal")  # across z, y, x; of volumes turned to LPS
FONT = cv2.FONT_HERSHEY_SIMPLEX


def colour_of(label: int) -> Colour:
    return OBJECT_COLOURS[(label - 1) % len(OBJECT_COLOURS)]


def slice_axes(axis: int) -> tuple[int, int]:
    """The axes of a volume that lead down and to the right in a slice across `axis`."""
    down, right = (i for i in range(3) if i != axis)
    return down, right


class SlicePicture:
    """A slice, or what is shown of it, as wide and high as it is in millimetres.

    Args:
        image: (h, w) grey levels 0..255; what is shown beyond it is black.
        origin: (row, column) of its first voxel in the slice.
        bounds: (2, 2) edges of what is shown, in voxels of the slice.
        scale: Pixels per voxel, down and to the right.
        is_upside_down: Rows are drawn from the bottom up: slices are stored from the feet, and the
            head is to be on top.

    Attributes:
        pixels: (H, W, 3) uint8.
    """

    def __init__(
        self,
        image: np.ndarray,
        origin: tuple[int, int],
        bounds: np.ndarray,
        scale: tuple[float, float],
        is_upside_down: bool,
    ) -> None:
        self.origin, self.bounds, self.scale = origin, bounds, scale
        self.is_upside_down = is_upside_down
        sides = np.maximum(np.rint((bounds[1] - bounds[0]) * scale), 1).astype(int)
        self.size = (int(sides[1]), int(sides[0]))  # as OpenCV wants it
        widths = [max(1, round(1 / each)) for each in scale]  # of a pixel, in voxels
        if max(widths) > 1:
            image = cv2.blur(image, (widths[1], widths[0]))
        grey = self._warped(image, cv2.INTER_NEAREST).clip(0, 255).astype(np.uint8)
        self.pixels = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)

    def _warped(self, part: np.ndarray, interpolation: int) -> np.ndarray:
        """A part of the slice on the pixels; 0 beyond."""
        (y, x), (first_row, first_column) = self.scale, self.bounds[0] - self.origin
        matrix = np.array([[1 / x, 0, 0.5 / x - 0.5 + first_column], [0, 0, 0]])
        if self.is_upside_down:
            last_row = self.bounds[1, 0] - self.origin[0]
            matrix[1] = 0, -1 / y, last_row - 0.5 - 0.5 / y
        else:
            matrix[1] = 0, 1 / y, 0.5 / y - 0.5 + first_row
        flags = interpolation | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(np.ascontiguousarray(part), matrix, self.size, flags=flags)

    def _at(self, positions: Sequence[tuple[float, float]]) -> np.ndarray:
        """(N, 2) positions -> (N, 2) pixels, x before y, as OpenCV wants them."""
        row, column = np.asarray(positions, float).T
        y, x = self.scale
        down = (
            self.bounds[1, 0] - row - 0.5 if self.is_upside_down else row + 0.5 - self.bounds[0, 0]
        )
        across = column + 0.5 - self.bounds[0, 1]
        return np.stack([across * x, down * y], axis=1) - 0.5

    def outline(
        self, mask: np.ndarray, colour: Colour, thickness: int = 1, is_dashed: bool = False
    ) -> None:
        """Draw the border of an (h, w) bool mask, which lies where the image does."""
        if not mask.any():
            return
        # With a margin: what lies at its edge ends there, and where half of a voxel is shown.
        padded = np.pad(mask, 1).astype(np.float32)
        origin, self.origin = self.origin, (self.origin[0] - 1, self.origin[1] - 1)
        covered = (self._warped(padded, cv2.INTER_LINEAR) > 0.5).astype(np.uint8)
        self.origin = origin
        lines, _ = cv2.findContours(covered, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        for line in lines:
            self._draw(smoothed(line[:, 0]), colour, thickness, is_dashed, is_closed=True)

    def box(self, start: np.ndarray, stop: np.ndarray, colour: Colour, is_faint: bool) -> None:
        """Draw a half-open box, dotted."""
        (top, left), (bottom, right) = np.array(start) - 0.5, np.array(stop) - 0.5
        corners = [(top, left), (top, right), (bottom, right), (bottom, left), (top, left)]
        path = []
        for a, b in zip(self._at(corners), self._at(corners[1:]), strict=False):
            steps = max(2, int(np.abs(b - a).max()))
            path.append(a + np.linspace(0, 1, steps, endpoint=False)[:, None] * (b - a))
        before = self.pixels.copy()
        self._draw(np.concatenate(path), colour, 1, is_dashed=True, is_closed=True, dash=2)
        self._fade(before, is_faint)

    def click(
        self, position: tuple[float, float], is_foreground: bool, is_faint: bool, text: str = ""
    ) -> None:
        """Draw a green + where the object is said to be, or a red x where not."""
        (x, y), before = self._at([position])[0], self.pixels.copy()
        colour = FOREGROUND_COLOUR if is_foreground else BACKGROUND_COLOUR
        arms = ((5, 0), (0, 5)) if is_foreground else ((4, 4), (4, -4))
        for shade, thickness in (((0, 0, 0), 4), (colour, 1)):
            for dx, dy in arms:
                ends = np.array([[x - dx, y - dy], [x + dx, y + dy]])
                self._draw(ends, shade, thickness)
        if text:
            write(self.pixels, text, (round(x) + 6, round(y) - 4), (255, 255, 255), has_edge=True)
        self._fade(before, is_faint)

    def _draw(
        self,
        points: np.ndarray,
        colour: Colour,
        thickness: int,
        is_dashed: bool = False,
        is_closed: bool = False,
        dash: int = DASH,
    ) -> None:
        """Draw a line through (N, 2) pixels; of a dashed one they are a pixel apart."""
        fixed = np.rint(points * 2**SHIFT).astype(np.int32)
        pieces = [fixed]
        if is_dashed:
            is_closed = False
            pieces = [fixed[i : i + dash + 1] for i in range(0, len(fixed), 2 * dash)]
        cv2.polylines(
            self.pixels, pieces, is_closed, colour, thickness, lineType=cv2.LINE_AA, shift=SHIFT
        )

    def _fade(self, before: np.ndarray, is_faint: bool) -> None:
        """Let what was drawn since `before` be hardly seen."""
        if is_faint:
            self.pixels = cv2.addWeighted(self.pixels, FAINT, before, 1 - FAINT, 0)


def smoothed(line: np.ndarray) -> np.ndarray:
    """A closed line of (N, 2) neighbouring pixels without its steps: the mean of five each."""
    reach = min(2, (len(line) - 1) // 4)
    return np.mean([np.roll(line, i, axis=0) for i in range(-reach, reach + 1)], axis=0)


def write(
    pixels: np.ndarray,
    text: str,
    corner: tuple[int, int],
    colour: Colour,
    size: float = 0.4,
    is_right: bool = False,
    has_edge: bool = False,
) -> None:
    """Write plain letters.

    Args:
        pixels: A picture, which is changed.
        text: ASCII.
        corner: x and y of its lower left corner, or of its lower right one if `is_right`.
        colour: RGB.
        size: Scale of the letters; those of 0.4 are 9 pixels high.
        is_right: It ends at the corner.
        has_edge: With a black edge, to be read on anything.
    """
    x, y = corner
    if is_right:
        (width, _), _ = cv2.getTextSize(text, FONT, size, 1)
        x -= width
    if has_edge:
        cv2.putText(pixels, text, (x, y), FONT, size, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(pixels, text, (x, y), FONT, size, colour, 1, cv2.LINE_AA)


def encode_png(pixels: np.ndarray) -> bytes:
    """A picture as the content of a .png file."""
    is_done, content = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert is_done
    return content.tobytes()


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write a picture, whole or not at all."""
    with atomic_write(path) as file:
        file.write(encode_png(pixels))
