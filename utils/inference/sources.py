"""What infer.py segments: .npz cases, image files and DICOM series, each read and written alike."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from utils.formats.case import Case, read_case, write_case
from utils.formats.image_header import is_dicom
from utils.formats.npz import CaseError
from utils.formats.scan import (
    FILE_AXES,
    Axis,
    read_scan,
    write_labels,
)
from utils.formats.scan_prompts import (
    SCAN_ENDINGS,
    RawObject,
    RawPrompts,
    ending_of,
    read_prompts,
    stem_of,
)

NPZ = ".npz"
DICOM_ENDING = SCAN_ENDINGS[0]  # for the labels of a series
EXPECTED = f".npz cases, images ({' '.join(SCAN_ENDINGS)}) or a DICOM series"


@dataclass(frozen=True)
class Opened:
    """A case that was read.

    Attributes:
        case: To be segmented.
        write: Writes its (D, H, W) uint8 labels.
        notice: What the user may want to know, or "".
        axes: Of the file, along the axes of the case.
    """

    case: Case
    write: Callable[[np.ndarray], None]
    notice: str = ""
    axes: tuple[Axis, Axis, Axis] = FILE_AXES


@dataclass(frozen=True)
class Source:
    """A file, or a folder that holds a DICOM series.

    Attributes:
        path: Of it.
        stem: Its name without the ending.
        ending: Of the file for its labels.
        prompts: Of a scan, from the command line; None: from the .json file beside it.
        window: Of CT; None: as that file says.
    """

    path: Path
    stem: str
    ending: str
    prompts: RawPrompts | None = None
    window: str | None = None

    @property
    def output(self) -> str:
        """File name for its labels."""
        return self.stem + self.ending

    @property
    def is_npz(self) -> bool:
        return self.ending == NPZ

    def open(self, outputs: Path) -> Opened:
        """Read it; its labels will go into the folder `outputs`.

        Raises:
            CaseError: It can't be used.
            OSError: It can't be read.
        """
        target = outputs / self.output
        if self.is_npz:
            return Opened(read_case(self.path), partial(write_case, target))
        beside = self.path.with_name(f"{stem_of(self.path)}.json")
        notices = []
        if self.prompts is not None:
            prompts = self.prompts
            if beside.is_file():
                notices.append(f"{beside.name} is not read, as there are --box or --click")
        elif beside.is_file():
            prompts = read_prompts(beside)
        else:
            raise CaseError(
                f"{self.path.name}: expected prompts in {beside.name} beside it, or as --box "
                "and --click"
            )
        window = self.window or prompts.window
        scan = read_scan(self.path, RawPrompts(prompts.objects, prompts.space, window))
        notice = "; ".join([*notices, *scan.notices])
        return Opened(scan.case, partial(write_labels, target, scan=scan), notice, scan.axes)


def find_sources(
    inputs: Path,
    objects: list[RawObject] | None = None,
    space: str = "voxel",
    window: str | None = None,
    ending: str | None = None,
) -> list[Source]:
    """What a file is, or what a folder holds, by name.

    Args:
        inputs: A file; a folder of cases, images, and folders of DICOM series with a .json file
            beside them; or the folder of one DICOM series.
        objects: Prompts of the one scan that there is, if they are not in a file.
        space: Of these.
        window: Of CT.
        ending: One of SCAN_ENDINGS, for the labels of scans; None: as the scan, .nii.gz for DICOM.

    Raises:
        ValueError: There is nothing that can be read, two of them would be written to one name,
            or options are not for what there is.
        OSError: The folder can't be read.
    """
    if not inputs.exists():
        raise ValueError(f"--inputs {inputs}: no such file or folder")
    paths = [inputs] if is_readable(inputs) else []
    if inputs.is_dir():
        found = (p for p in inputs.iterdir() if not p.name.startswith("."))
        paths = sorted(p for p in found if is_readable(p) or _is_scan_folder(p))
        if not paths and _is_series(inputs):
            paths = [inputs.resolve()]
    if not paths:
        raise ValueError(f"no cases: expected {EXPECTED}, got none in {inputs}")
    prompts = RawPrompts(tuple(objects), space) if objects else None
    sources = [
        Source(path, path.stem, NPZ)
        if _is_npz(path)
        else Source(path, stem_of(path), ending or ending_of(path) or DICOM_ENDING, prompts, window)
        for path in paths
    ]
    scans = [source for source in sources if not source.is_npz]
    if prompts and len(scans) != 1:
        names = ", ".join(source.path.name for source in scans[:3]) or sources[0].path.name
        raise ValueError(f"--box, --click: expected one scan, no .npz case, got {names}")
    for option, given in (("window", window), ("output-format", ending)):
        if given and not scans:
            raise ValueError(f"--{option}: expected a scan, got .npz cases alone")
    if space != "voxel" and not prompts:
        raise ValueError(f"--space {space}: expected --box or --click, got none")
    seen: dict[str, Source] = {}
    for source in sources:
        other = seen.setdefault(source.stem, source)
        if other is not source:
            raise ValueError(
                f"{other.path.name} and {source.path.name} would be written to one name: expected "
                "names that differ before the ending"
            )
    return sources


def is_readable(path: Path) -> bool:
    """Whether it is a file of a kind that is read, by its name."""
    return path.is_file() and (_is_npz(path) or ending_of(path) is not None)


def _is_npz(path: Path) -> bool:
    return path.suffix.lower() == NPZ and path.is_file()


def _is_series(path: Path) -> bool:
    """Whether it is a folder that holds a DICOM file."""
    return path.is_dir() and any(file.is_file() and is_dicom(file) for file in path.iterdir())


def _is_scan_folder(path: Path) -> bool:
    return (path.is_dir() and path.with_name(f"{path.name}.json").is_file()) or _is_series(path)
