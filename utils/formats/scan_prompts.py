"""The prompts of a scan: a JSON file, or options of the command line, in voxels or millimetres."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as brief
from typing import Any

# numpy is imported where it is used, so that messages about options come at once.
SCAN_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
SPACES = ("voxel", "lps", "ras")
OVERLAPS = ("highest", "first")  # as Canvas of segment_anything.predictor3D takes them
DRAWN = ("box", "scribble", "lasso")
MAX_BYTES = 4 * 2**20  # a JSON file's size
MAX_NUMBER = 1e9  # voxels or mm


@dataclass(frozen=True)
class RawDrawing:
    """What was drawn in a slice, as it was given.

    Attributes:
        kind: One of DRAWN.
        points: (z, y, x): two corners of a box, the line of a scribble, the outline of a lasso.
        is_foreground: The object is there, or is not.
        after: Clicks of the object that were made before.
    """

    kind: str
    points: tuple[tuple[float, ...], ...]
    is_foreground: bool
    after: int


@dataclass
class RawObject:
    """The prompts of an object as they were given: numbers (z, y, x) in one of SPACES.

    Attributes:
        box: z0, y0, x0, z1, y1, x1: half-open in voxels; two corners in millimetres.
        clicks: Points (z, y, x), each with True for the object, False for what is not.
        drawings: In slices, in the order in which they were made.
        initial: The object's label in the file of labels to begin with, or None.
    """

    box: tuple[float, ...] | None = None
    clicks: list[tuple[tuple[float, ...], bool]] = field(default_factory=list)
    drawings: list[RawDrawing] = field(default_factory=list)
    initial: int | None = None


@dataclass(frozen=True)
class RawPrompts:
    """The prompts of a scan as they were given.

    Attributes:
        objects: Object 1, 2, ...
        space: One of SPACES: voxels of the file, or mm.
        window: A CT window as `parse_window` reads it, or None.
        overlap: One of OVERLAPS: whose a voxel of several objects is.
        labels: File of labels to begin with, on the scan's grid, or None.
    """

    objects: tuple[RawObject, ...]
    space: str = "voxel"
    window: str | None = None
    overlap: str = "highest"
    labels: Path | None = None


def ending_of(path: Path) -> str | None:
    """One of SCAN_ENDINGS, None if it has another."""
    return next((ending for ending in SCAN_ENDINGS if path.name.lower().endswith(ending)), None)


def stem_of(path: Path) -> str:
    """The name of a scan without its ending, or that of a folder of DICOM files."""
    if path.is_dir():
        return path.name
    ending = ending_of(path)
    return path.name[: -len(ending)] if ending else path.stem


def read_prompts(path: Path) -> RawPrompts:
    """Read a JSON file of prompts.

        {"space": "voxel", "window": "abdomen",
         "objects": [{"box": [10, 40, 40, 30, 90, 80], "clicks": [[22, 71, 60, 0]]}]}

    All but `objects` may be missing. A click is z, y, x and 1 for the object, 0 for what is not.
    docs/scans.md has the rest.

    Raises:
        CaseError: It holds something else.
        OSError: It can't be read.
    """
    from utils.formats.npz import CaseError

    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES} bytes")
        return parse_prompts(json.loads(data, object_pairs_hook=_keys_once), path.parent)
    except json.JSONDecodeError as error:
        raise CaseError(f"{path.name}: expected JSON: {error}") from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise CaseError(f"{path.name}: {error}") from error


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"expected each key once, got {', '.join(key for key, _ in pairs)[:200]}")
    return content


def parse_prompts(content: Any, folder: Path) -> RawPrompts:
    """The content of a JSON file of prompts, checked; its labels lie in `folder`.

    Raises:
        ValueError: It is something else.
    """
    _check_keys(content, ("objects",), ("space", "window", "overlap", "labels"), "the file")
    space, window = content.get("space", "voxel"), content.get("window")
    overlap, labels = content.get("overlap", "highest"), content.get("labels")
    if space not in SPACES:
        raise ValueError(f"space: expected one of {', '.join(SPACES)}, got {brief(space)}")
    if window is not None and not isinstance(window, str):
        raise ValueError(f"window: expected a text, got {brief(window)}")
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap: expected one of {', '.join(OVERLAPS)}, got {brief(overlap)}")
    if labels is not None and (not isinstance(labels, str) or Path(labels).name != labels):
        raise ValueError(f"labels: expected the name of a file beside it, got {brief(labels)}")
    if not isinstance(content["objects"], list) or not content["objects"]:
        raise ValueError("objects: expected a list of at least one")
    objects = tuple(
        parse_object(entry, f"object {i}") for i, entry in enumerate(content["objects"], 1)
    )
    known = [raw.initial for raw in objects if raw.initial is not None]
    if len(set(known)) < len(known) or (known and labels is None):
        raise ValueError(f"initial: expected labels of a file in `labels`, each once, got {known}")
    return RawPrompts(objects, space, window, overlap, folder / labels if labels else None)


def parse_object(entry: Any, where: str) -> RawObject:
    """An object of a JSON file of prompts, checked.

    Raises:
        ValueError: It is something else.
    """
    _check_keys(entry, (), ("box", "clicks", "drawings", "initial"), where)
    raw = RawObject(initial=entry.get("initial"))
    if raw.initial is not None and not (type(raw.initial) is int and raw.initial > 0):
        raise ValueError(
            f"initial of {where}: expected a label from 1 on, got {brief(raw.initial)}"
        )
    if entry.get("box") is not None:
        raw.box = _numbers(entry["box"], 6, f"box of {where}")
    for key in ("clicks", "drawings"):
        if not isinstance(entry.get(key, []), list):
            raise ValueError(f"{key} of {where}: expected a list, got {brief(entry[key])}")
    raw.clicks = [_click(click, f"click of {where}") for click in entry.get("clicks", [])]
    raw.drawings = [
        _drawing(drawing, len(raw.clicks), f"drawing of {where}")
        for drawing in entry.get("drawings", [])
    ]
    if (order := [drawing.after for drawing in raw.drawings]) != sorted(order):
        raise ValueError(f"drawings of {where}: expected them as they were made, got after {order}")
    return raw


def _drawing(entry: Any, clicks: int, where: str) -> RawDrawing:
    _check_keys(entry, (), (*DRAWN, "label", "after"), where)
    kinds = [kind for kind in DRAWN if kind in entry]
    label, after = entry.get("label", 1), entry.get("after", 0)
    if len(kinds) != 1:
        raise ValueError(f"{where}: expected one of {', '.join(DRAWN)}, got {kinds}")
    if type(label) is not int or label not in (0, 1):
        raise ValueError(f"{where}: expected a label 1 (object) or 0 (not), got {brief(label)}")
    if type(after) is not int or not 0 <= after <= clicks:
        raise ValueError(f"{where}: expected after as 0 to {clicks} clicks, got {brief(after)}")
    given = entry[kinds[0]]
    if kinds[0] == "box":
        corners = _numbers(given, 6, where)
        return RawDrawing("box", (corners[:3], corners[3:]), label == 1, after)
    if not isinstance(given, list) or not given:
        raise ValueError(f"{where}: expected a list of points, got {brief(given)}")
    points = tuple(_numbers(point, 3, where) for point in given)
    return RawDrawing(kinds[0], points, label == 1, after)


def _check_keys(entry: Any, needed: Sequence[str], possible: Sequence[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(entry).__name__}")
    wrong = [key for key in entry if key not in (*needed, *possible)]
    missing = [key for key in needed if key not in entry]
    if wrong or missing:
        names, got = ", ".join((*needed, *possible)), ", ".join(entry)[:200] or "none"
        raise ValueError(f"{where}: expected the keys {names}, got {got}")


def _numbers(values: Any, count: int, where: str) -> tuple[float, ...]:
    is_list = isinstance(values, list) and len(values) == count
    if not is_list or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER
        for value in values
    ):
        raise ValueError(f"{where}: expected {count} numbers, got {brief(values)}")
    return tuple(map(float, values))


def _click(values: Any, where: str) -> tuple[tuple[float, ...], bool]:
    *point, kind = _numbers(values, 4, where)
    if kind not in (0, 1):
        raise ValueError(f"{where}: expected 1 (object) or 0 (not) at the end, got {kind:g}")
    return tuple(point), kind == 1


def join_negative(arguments: Sequence[str]) -> list[str]:
    """--click -3,40,5,1 as --click=-3,40,5,1: argparse takes -3,40,5,1 for an option."""
    joined: list[str] = []
    for argument in arguments:
        is_list = re.fullmatch(r"-[\d.][^=]*,.*", argument)
        if is_list and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


class _AddPrompt(argparse.Action):
    """--object and --box begin an object, --click adds to the last one begun."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        objects = getattr(namespace, self.dest)
        if objects is None:
            objects = []
            setattr(namespace, self.dest, objects)
        if option_string != "--click" or not objects:
            objects.append(RawObject())
        if option_string == "--object":
            return
        try:
            numbers = [float(value) for value in str(values).split(",")]
            if option_string == "--box":
                objects[-1].box = _numbers(numbers, 6, "a box")
            else:
                objects[-1].clicks.append(_click(numbers, "a click"))
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from error


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "prompts of a scan",
        "For one scan; else they lie in a .json file beside it (README). Numbers come as z,y,x, in "
        "voxels of the file or, with --space, in mm.",
    )
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a .json file of prompts that lies elsewhere; also for an .npz case",
    )
    group.add_argument(
        "--box",
        action=_AddPrompt,
        dest="objects",
        metavar="Z0,Y0,X0,Z1,Y1,X1",
        help="begins an object: its box, half-open in voxels, two opposite corners in mm",
    )
    group.add_argument(
        "--click",
        action=_AddPrompt,
        dest="objects",
        metavar="Z,Y,X,FG",
        help="a click for the object begun last; FG is 1 in the object, 0 outside of it",
    )
    group.add_argument(
        "--object",
        action=_AddPrompt,
        dest="objects",
        nargs=0,
        help="begins an object without a box",
    )
    group.add_argument(
        "--space",
        choices=SPACES,
        default="voxel",
        help="what --box and --click count in: voxels, or mm from right to left, front to back "
        "and feet to head (lps), or from left to right and back to front (ras)",
    )
