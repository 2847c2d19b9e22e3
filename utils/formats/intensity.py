"""Grey levels as the challenge has them: CT windowed, other images scaled between percentiles."""

import math
from typing import TYPE_CHECKING

# numpy is imported where it is used, as infer.py --help names the windows.
if TYPE_CHECKING:
    import numpy as np

# As the challenge prepares CT: (level, width) in HU.
CT_WINDOWS = {
    "abdomen": (40.0, 400.0),
    "lung": (-160.0, 1500.0),
    "brain": (40.0, 80.0),
    "bone": (400.0, 1800.0),
}
# For the voxels above 0: the challenge's rule for all but CT.
PERCENTILES = (0.5, 99.5)
LOOKS_LIKE_HU = -500.0  # below that are the air and lungs of CT, and hardly anything else
BELOW_ZERO = 0.01  # share of the voxels, from which on 0 is not the background of other images
ZEROS = 0.05  # the same, from which on voxels that are just 0 are their background
LEAST_SHOWN = 1 / 20  # of a window, by what an image reaches
LEAST_INSIDE = 0.02  # share of the voxels, within a window
FEW_BELOW = 0.001  # share of the voxels of CT that are below 0 at least: fat and air
OFFSET = 1024  # of stored values of CT, which some programs leave on


def parse_window(text: str) -> tuple[float, float]:
    """A name of CT_WINDOWS, or LEVEL,WIDTH -> level and width in HU.

    Raises:
        ValueError: It is neither.
    """
    if text in CT_WINDOWS:
        return CT_WINDOWS[text]
    try:
        level, width = map(float, text.split(","))
    except ValueError:
        level, width = math.nan, math.nan
    if not (math.isfinite(level) and 0 < width < math.inf):
        raise ValueError(f"expected {', '.join(CT_WINDOWS)} or LEVEL,WIDTH in HU, got {text!r}")
    return level, width


def scale(image: "np.ndarray", low: float, high: float) -> "np.ndarray":
    """A (D, H, W) image -> uint8: low..high becomes 0..255, what lies beyond the nearer end."""
    import numpy as np

    grey = np.empty(image.shape, np.uint8)
    for i, plane in enumerate(image):  # float64 of all of them may not fit into memory
        fraction = (plane.astype(np.float64) - low) / (high - low)
        grey[i] = np.rint(255 * fraction.clip(0, 1))
    return grey


def scale_window(image: "np.ndarray", level: float, width: float) -> "np.ndarray":
    """A (D, H, W) CT image in HU -> uint8, by the window round `level`."""
    return scale(image, level - width / 2, level + width / 2)


def scale_percentiles(image: "np.ndarray") -> "np.ndarray":
    """Any other (D, H, W) image -> uint8, between PERCENTILES of its voxels above 0.

    Raises:
        ValueError: It has none, or these are all equal.
    """
    import numpy as np

    values = image[image > 0]
    if len(values) == 0:
        raise ValueError(f"expected voxels above 0, got {image.min():g}..{image.max():g}")
    low, high = np.percentile(values, PERCENTILES, overwrite_input=True)
    if low == high:
        raise ValueError(f"expected voxels that differ, got {low:g} almost everywhere above 0")
    return scale(image, low, high)


def to_grey(
    image: "np.ndarray", window: tuple[float, float] | None
) -> tuple["np.ndarray", list[str]]:
    """A (D, H, W) image -> uint8 as the challenge has it, and what the user may want to know.

    Args:
        image: Any numbers.
        window: Level and width in HU, of CT; None: between PERCENTILES of the voxels above 0, or,
            where 0 is not the background, as in z-scores, of all that are not background.

    Raises:
        ValueError: It isn't finite, or shows nothing that way; the message says what was seen.
    """
    import numpy as np

    if image.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in image):
        raise ValueError("expected finite values, got nan or inf")
    if window:
        notices = _window_notices(image, *window)
        return scale_window(image, *window), notices
    least = float(image.min())
    if least < LOOKS_LIKE_HU:
        notice = "looks like CT in HU; a --window shows soft tissue better"
        return scale_percentiles(image), [notice]
    share = _share(image < 0)
    if share < BELOW_ZERO:
        return scale_percentiles(image), []
    return _scale_around_zero(image), [
        f"{share:.0%} of its voxels are below 0, from {least:.4g} on: scaled between percentiles "
        "of all but the background"
    ]


def _scale_around_zero(image: "np.ndarray") -> "np.ndarray":
    """An image in which 0 is a value as others are, such as of z-scores -> uint8."""
    import numpy as np

    is_zero = image == 0
    is_shown = ~is_zero if _share(is_zero) >= ZEROS else np.ones(image.shape, bool)
    low, high = np.percentile(image[is_shown], PERCENTILES)
    if low == high:
        raise ValueError(f"expected voxels that differ, got {low:g} almost everywhere")
    grey = scale(image, low, high)
    return np.where(is_shown, np.maximum(grey, 1), 0).astype(np.uint8)


def _window_notices(image: "np.ndarray", level: float, width: float) -> list[str]:
    """What is odd about an image in a window; raises ValueError where it shows next to nothing."""
    low, high = level - width / 2, level + width / 2
    least, most = float(image.min()), float(image.max())
    seen = f"{least:.4g} to {most:.4g}"
    if most <= low or least >= high:
        hint = ""
        if least >= high and least - OFFSET < high and most - OFFSET > low:
            hint = f": is it HU + {OFFSET}?"
        raise ValueError(f"expected HU in the window {low:g} to {high:g}, got {seen}{hint}")
    if most - least < LEAST_SHOWN * width:
        raise ValueError(
            f"expected HU for the window {low:g} to {high:g}, got {seen}: if it was scaled before, "
            "leave the window out"
        )
    inside = _share((image > low) & (image < high))
    if inside < LEAST_INSIDE:
        return [f"the window {low:g} to {high:g} shows {inside:.1%} of its voxels, of {seen}"]
    if _share(image < 0) < FEW_BELOW:
        return [
            f"no value is below 0, or hardly one, of {seen}: is it HU, or HU + {OFFSET}, or no CT?"
        ]
    return []


def _share(is_so: "np.ndarray") -> float:
    return float(is_so.mean())
