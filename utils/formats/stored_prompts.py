"""Boxes and clicks as a challenge file stores them, checked, and made ours."""

from reprlib import repr as brief
from typing import Any

from segment_anything.prompts import Box, Click, Index3
from utils.formats.npz import CaseError

BOX_KEYS = "z_min z_max z_mid z_mid_y_min z_mid_y_max z_mid_x_min z_mid_x_max".split()
MAX_CLICKS = 100_000  # in a case


def parse_box(entry: Any, label: int, shape: tuple[int, ...]) -> Box:
    """Inclusive bounds of the file -> half-open Box."""
    if not isinstance(entry, dict):
        raise CaseError(f"box of object {label}: expected a dict, got {type(entry).__name__}")
    if missing := [key for key in BOX_KEYS if key not in entry]:
        raise CaseError(f"box of object {label}: expected keys {BOX_KEYS}, missing {missing}")
    bounds = {key: entry[key] for key in BOX_KEYS}
    if not all(_is_integer(value) for value in bounds.values()):
        raise CaseError(f"box of object {label}: expected integers, got {brief(bounds)}")
    z_min, z_max, z_mid, y_min, y_max, x_min, x_max = (int(v) for v in bounds.values())
    for axis, low, high, n in zip(
        "zyx", (z_min, y_min, x_min), (z_max, y_max, x_max), shape, strict=True
    ):
        if not 0 <= low <= high < n:
            raise CaseError(
                f"box of object {label}: expected 0 <= {axis} min <= {axis} max <= {n - 1}, "
                f"got {low}..{high}"
            )
    if not z_min <= z_mid <= z_max:
        raise CaseError(f"box of object {label}: expected z_mid in {z_min}..{z_max}, got {z_mid}")
    return Box((z_min, y_min, x_min), (z_max + 1, y_max + 1, x_max + 1))


def stored_box(box: Box, z_mid: int) -> dict[str, int]:
    """A box as a challenge file stores it, all bounds inclusive; y and x are of slice `z_mid`."""
    (z0, y0, x0), (z1, y1, x1) = box.start, box.stop
    bounds = (z0, z1 - 1, z_mid, y0, y1 - 1, x0, x1 - 1)
    return dict(zip(BOX_KEYS, bounds, strict=True))


def parse_clicks(entry: Any, order: Any, label: int, shape: tuple[int, ...]) -> tuple[Click, ...]:
    """{"fg": points, "bg": points} and the order of their kinds -> clicks as they were made."""
    if not isinstance(entry, dict) or not set(entry) <= {"fg", "bg"}:
        raise CaseError(f'clicks of object {label}: expected {{"fg": [...], "bg": [...]}}')
    points = {kind: _check_points(entry.get(kind, ()), label, shape) for kind in ("fg", "bg")}
    if order is None:
        kinds = ["fg"] * len(points["fg"]) + ["bg"] * len(points["bg"])
    else:
        if not isinstance(order, (list, tuple)):
            raise CaseError(f"clicks_order of object {label}: expected a list")
        kinds = [kind for kind in order if kind is not None]
    if unknown := [kind for kind in kinds if kind not in ("fg", "bg")]:
        raise CaseError(
            f"clicks_order of object {label}: expected fg, bg or None, got {brief(unknown)}"
        )
    for kind in ("fg", "bg"):
        if kinds.count(kind) != len(points[kind]):
            raise CaseError(
                f"clicks of object {label}: expected {len(points[kind])} {kind} in clicks_order, "
                f"got {kinds.count(kind)}"
            )
    queues = {kind: iter(values) for kind, values in points.items()}
    return tuple(Click(next(queues[kind]), kind == "fg") for kind in kinds)


def _check_points(points: Any, label: int, shape: tuple[int, ...]) -> list[Index3]:
    if not isinstance(points, (list, tuple)) or len(points) > MAX_CLICKS:
        raise CaseError(f"clicks of object {label}: expected a list of at most {MAX_CLICKS} points")
    checked = []
    for point in points:
        if not isinstance(point, (list, tuple)) or len(point) != 3:
            raise CaseError(f"click of object {label}: expected [z, y, x], got {brief(point)}")
        if not all(_is_integer(v) and 0 <= v < n for v, n in zip(point, shape, strict=True)):
            raise CaseError(
                f"click of object {label}: expected a voxel [z, y, x] of {shape}, got "
                f"{brief(point)}"
            )
        checked.append((int(point[0]), int(point[1]), int(point[2])))
    return checked


def _is_integer(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) < 2**31 and value == int(value)  # false for NaN, too
