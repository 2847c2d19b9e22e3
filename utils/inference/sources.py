"""What infer.py segments: .npz cases, image files and DICOM series, found and read."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.formats.case import Case, read_bare_case, read_case
from utils.formats.image_header import is_dicom
from utils.formats.npz import CaseError
from utils.formats.scan_prompts import (
    SCAN_ENDINGS,
    RawObject,
    RawPrompts,
    ending_of,
    read_prompts,
    stem_of,
)

# SimpleITK, which scans are read with, takes a tenth of the start-up that a .npz case waits for.
if TYPE_CHECKING:
    from utils.formats.scan import Scan

NPZ = ".npz"
DICOM_ENDING = SCAN_ENDINGS[0]  # what the labels of a series are written as
EXPECTED = f".npz cases, images ({' '.join(SCAN_ENDINGS)}) or a DICOM series"


@dataclass(frozen=True)
class Source:
    """A case to segment: a file, or a folder that holds a DICOM series.

    Attributes:
        path: The file or folder.
        stem: Its name without the ending.
        ending: Ending of the file for its labels.
        prompts: Prompts on the command line; None: those of a scan lie in the .json file beside it,
            those of an .npz file in itself.
        window: CT window on the command line; None: as that file says.
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


def read_source(source: Source) -> "tuple[Case, Scan | None]":
    """Read a case, and the scan that it is made of; an .npz file has none.

    Raises:
        CaseError: It can't be used.
        OSError: It can't be read.
    """
    if source.is_npz and source.prompts is None:
        return read_case(source.path), None
    from utils.formats.scan import Grid, prompted, read_scan

    if source.is_npz:
        assert source.prompts is not None
        if source.prompts.window:
            raise CaseError(f"{source.path.name}: expected no window for an .npz case")
        case = read_bare_case(source.path)
        grid = Grid.of_case(case)
        try:
            return prompted(case, source.prompts, grid, grid, []), None
        except ValueError as error:
            raise CaseError(f"{source.path.name}: {error}") from error

    beside = source.path.with_name(f"{stem_of(source.path)}.json")
    notices = []
    if source.prompts is not None:
        prompts = source.prompts
        if beside.is_file():
            notices.append(f"{beside.name} is not read, as there are --prompts, --box or --click")
    elif beside.is_file():
        prompts = read_prompts(beside)
    else:
        raise CaseError(
            f"{source.path.name}: expected prompts in {beside.name} beside it, or as --box "
            "and --click"
        )
    scan = read_scan(source.path, replace(prompts, window=source.window or prompts.window))
    return scan.case, replace(scan, notices=(*notices, *scan.notices))


def find_sources(
    inputs: Path,
    objects: list[RawObject] | None = None,
    space: str = "voxel",
    window: str | None = None,
    ending: str | None = None,
    file: Path | None = None,
) -> list[Source]:
    """The cases that a path names or holds, ordered by name.

    Args:
        inputs: A file, which may be one of DICOM with several frames; a folder of cases, images,
            and folders of DICOM series with a .json file beside them; or the folder of one series.
        objects: Prompts of the one scan that there is, if they are not in a file.
        file: Their file, of the one scan or .npz case that there is.
        space: Space of these prompts, one of SPACES.
        window: CT window for all scans, as `parse_window` reads it.
        ending: One of SCAN_ENDINGS, for the labels of scans; None: as the scan, .nii.gz for DICOM.

    Raises:
        ValueError: There is nothing that can be read, two of them would be written to one name,
            or options are not for what there is.
        OSError: The folder can't be read.
    """
    if not inputs.exists():
        raise ValueError(f"--inputs {inputs}: no such file or folder")
    paths = [inputs] if is_readable(inputs) or _is_dicom_file(inputs) else []
    if inputs.is_dir():
        found = (p for p in inputs.iterdir() if not p.name.startswith("."))
        paths = sorted(p for p in found if is_readable(p) or _is_scan_folder(p))
        if not paths and _is_series(inputs):
            paths = [inputs.resolve()]
    if not paths:
        raise ValueError(f"no cases: expected {EXPECTED}, got none in {inputs}")
    prompts = RawPrompts(tuple(objects), space) if objects else None
    if file is not None:
        if prompts or len(paths) != 1:
            got = "--box or --click" if prompts else f"{len(paths)} of them in {inputs}"
            raise ValueError(f"--prompts: expected one scan or case and no other, got {got}")
        prompts = read_prompts(file)
    sources = [
        Source(path, path.stem, NPZ, prompts if file else None)
        if _is_npz(path)
        else Source(path, stem_of(path), ending or ending_of(path) or DICOM_ENDING, prompts, window)
        for path in paths
    ]
    scans = [source for source in sources if not source.is_npz]
    if objects and len(scans) != 1:
        names = ", ".join(source.path.name for source in scans[:3]) or sources[0].path.name
        raise ValueError(f"--box, --click: expected one scan, no .npz case, got {names}")
    for option, given in (("window", window), ("output-format", ending)):
        if given and not scans:
            raise ValueError(f"--{option}: expected a scan, got .npz cases alone")
    if space != "voxel" and not objects:
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
    """Whether this is a file of a kind that is read, by its name."""
    return path.is_file() and (_is_npz(path) or ending_of(path) is not None)


def _is_npz(path: Path) -> bool:
    return path.suffix.lower() == NPZ and path.is_file()


def _is_series(path: Path) -> bool:
    """Whether it is a folder that holds a DICOM file."""
    return path.is_dir() and any(map(_is_dicom_file, path.iterdir()))


def _is_dicom_file(path: Path) -> bool:
    return path.is_file() and is_dicom(path)


def _is_scan_folder(path: Path) -> bool:
    return (path.is_dir() and path.with_name(f"{path.name}.json").is_file()) or _is_series(path)
