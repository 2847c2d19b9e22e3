"""Label maps without an image, which give synthetic training cases their shapes.

A .npz file with the keys

    gts             (D, H, W) = (z, y, x) labels from 0 on
    spacing         3 numbers in mm, (x, y, z) as in the challenge
    names           optional: a string, JSON of {label: name}, such as {"1": "liver"}
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.formats.case import check_gts, check_spacing
from utils.formats.npz import CaseError, map_array, open_npz, read_array, read_numbers, read_text

MAX_OBLONG = 100  # of a voxel's longest side over its shortest


@dataclass(frozen=True)
class LabelMap:
    """Labels and what they are called.

    Attributes:
        gts: (D, H, W) = (z, y, x) labels from 0 on, of about cubic voxels.
        names: In lower case, by label; of those that have one.
    """

    gts: np.ndarray
    names: Mapping[int, str] = field(default_factory=dict)


def find_label_maps(paths: Sequence[Path]) -> list[Path]:
    """The files among these paths, and those in the folders among them, all readable.

    Raises:
        CaseError: One is no label map.
        OSError: One can't be read.
    """
    files = [
        file
        for path in paths
        for file in (sorted(path.rglob("*.npz")) if path.is_dir() else [path])
    ]
    if paths and not files:
        raise CaseError(f"expected label maps, got none in {', '.join(map(str, paths))}")
    for file in dict.fromkeys(files):
        read_label_map(file)
    return files


def read_label_map(path: Path) -> LabelMap:
    """Read a label map, thinned along the axes on which it is finer than on the others.

    Raises:
        CaseError: The file is not usable.
        OSError: It can't be read.
    """
    with open_npz(path) as archive:
        spacing = check_spacing(read_numbers(archive, "spacing"))
        gts = check_gts(_labels(path, archive))
        text = read_text(archive, "names")
        names = _names(text) if text is not None else {}
    if max(spacing) > MAX_OBLONG * min(spacing):
        raise CaseError(
            f"{path.name}: expected sides of voxels up to 1 : {MAX_OBLONG}, got {spacing}"
        )
    z, y, x = (slice(None, None, max(1, round(max(spacing) / mm))) for mm in spacing)
    return LabelMap(gts[z, y, x], names)


def _labels(path: Path, archive: zipfile.ZipFile) -> np.ndarray | None:
    """Mapped where they are stored as they are, as in prepared cases; else read."""
    stored = [i.filename for i in archive.infolist() if i.compress_type == zipfile.ZIP_STORED]
    return map_array(path, archive, "gts") if "gts.npy" in stored else read_array(archive, "gts")


def _names(text: str) -> dict[int, str]:
    try:
        content = json.loads(text)
        return {int(label): str(name).lower() for label, name in content.items()}
    except (AttributeError, RecursionError, ValueError) as error:
        message = f"names: expected JSON of {{label: name}}, got {text[:80]!r}"
        raise CaseError(message) from error
