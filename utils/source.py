"""What infer.py segments: .npz cases, image files and DICOM series, each read and written alike."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from utils.case import Case, read_case, write_case
from utils.npz import CaseError
from utils.options import SCAN_ENDINGS
from utils.prompt_file import RawObject, RawPrompts, read_prompts
from utils.scan import ending_of, read_scan, stem_of, write_labels

EXPECTED = f".npz cases, images ({' '.join(SCAN_ENDINGS)}) or a DICOM series"


@dataclass(frozen=True)
class Opened:
    """A case that was read.

    Attributes:
        case: To be segmented.
        write: Writes its (D, H, W) uint8 labels.
        notice: What the user may want to know, or "".
    """

    case: Case
    write: Callable[[np.ndarray], None]
    notice: str = ""


@dataclass(frozen=True)
class Source:
    """A file, or a folder that holds a DICOM series.

    Attributes:
        path: Of it.
        output: File name for its labels.
        prompts: Of a scan, from the command line; None: from the .json file beside it.
        window: Of CT; None: as that file says.
    """

    path: Path
    output: str
    prompts: RawPrompts | None = None
    window: str | None = None

    @property
    def stem(self) -> str:
        return self.output.removesuffix(".npz") if self.is_npz else stem_of(Path(self.output))

    @property
    def is_npz(self) -> bool:
        return self.path.suffix == ".npz"

    def open(self, outputs: Path) -> Opened:
        """Read it; its labels will go into the folder `outputs`.

        Raises:
            CaseError: It can't be used.
            OSError: It can't be read.
        """
        target = outputs / self.output
        if self.is_npz:
            return Opened(read_case(self.path), partial(write_case, target))
        prompts = self.prompts
        if prompts is None:
            beside = self.path.with_name(f"{stem_of(self.path)}.json")
            if not beside.is_file():
                raise CaseError(
                    f"{self.path.name}: expected prompts in {beside.name} beside it, or as --box "
                    "and --click"
                )
            prompts = read_prompts(beside)
        window = self.window or prompts.window
        scan = read_scan(self.path, RawPrompts(prompts.objects, prompts.space, window))
        return Opened(scan.case, lambda seg: write_labels(target, seg, scan), scan.notice)


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
        ValueError: Two of them would be written to one name, or `objects` are not for one scan.
    """
    paths = [inputs] if is_readable(inputs) else []
    if inputs.is_dir():
        found = (p for p in inputs.iterdir() if not p.name.startswith("."))
        paths = sorted(p for p in found if is_readable(p) or _is_series_with_prompts(p))
        if not paths and _is_series(inputs):
            paths = [inputs.resolve()]
    sources = []
    prompts = RawPrompts(tuple(objects), space) if objects else None
    for path in paths:
        output = path.name
        if path.suffix != ".npz":
            output = stem_of(path) + (ending or ending_of(path) or SCAN_ENDINGS[0])
        sources.append(Source(path, output, prompts, window))
    if prompts and (len(sources) != 1 or sources[0].is_npz):
        what = sources[0].path.name if len(sources) == 1 else f"{len(sources)} inputs"
        raise ValueError(f"--box, --click: expected one scan, no .npz case, got {what}")
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
    return path.is_file() and (path.suffix == ".npz" or ending_of(path) is not None)


def _is_series_with_prompts(path: Path) -> bool:
    return path.is_dir() and path.with_name(f"{path.name}.json").is_file()


def _is_series(folder: Path) -> bool:
    """Whether a folder holds a DICOM file, as these begin."""
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                if file.read(132)[128:] == b"DICM":
                    return True
    return False
