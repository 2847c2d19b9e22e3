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
