"""DICOM -> volumes: headers and stored values by pydicom, compressed ones unpacked by GDCM in ITK.

ITK's own reader of series takes the type of the first slice's values for all, makes up 1 mm where a
position is missing, and inverts MONOCHROME1. So slices are placed here, by their own headers, and
their values are stored value times slope plus intercept, each slice by its own.
"""

import locale
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from utils.formats.image_header import is_dicom
from utils.formats.npz import MAX_VOLUME_BYTES

OWN = ("SeriesInstanceUID", "Modality")  # what is no image has others than the images beside it
OF_IMAGES = ("Rows", "Columns", "BitsAllocated", "PixelRepresentation")  # all have them
# What files that are a series each have in common, and what phases and echoes have not.
PHASES = ("TemporalPositionIdentifier", "EchoNumbers")
ONE = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", *PHASES)
UNFINISHED = (".gz", ".part", ".tmp", ".crdownload")  # endings that programs add
# The classes whose rescaling by frames GDCM knows: enhanced CT, MR and PET, and converted ones.
RESCALED = {
    f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2.1", "2.2", "4.1", "4.4", "130", "128.1")
}
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # no images
META_GROUP = 2  # of the elements that say how the rest is written
DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR
WHOLE = "expected whole files of one series"
# What Python raises of values that are not what a tag is for.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError)
STEP_TOLERANCE = 0.25  # distances of slices by which one may lie off its place
SAME = 1e-3  # mm, and cosines of a direction, by which slices are alike
SHOWN = 3  # names in a message, of many
FEWEST_ALONE = 3  # files each in a series of its own that may be one volume


@dataclass(frozen=True)
class Slice:
    """A slice, or a frame of a file of several.

    Attributes:
        file: Where it lies.
        frame: Its number in the file, from 0 on.
        position: (3,) mm of its first pixel, in LPS.
        rows: (2, 3), directions in which the column index and the row index grow.
        spacing: (y, x) mm between pixels.
        shape: (H, W).
        slope: Of stored values, with
        intercept: to be added; both None where the file has none.
    """

    file: Path
    frame: int
    position: np.ndarray
    rows: np.ndarray
    spacing: np.ndarray
    shape: tuple[int, int]
    slope: float | None
    intercept: float | None


@contextmanager
def kept_locale() -> Iterator[None]:
    """GDCM, which unpacks DICOM for ITK, leaves the process with the locale C, without UTF-8."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def read_dicom(path: Path, notices: list[str]) -> sitk.Image:
    """The volume of a folder with one series, or of a file of several frames; float32.

    Args:
        path: The folder or file.
        notices: List to which is added what the user may want to know.

    Raises:
        ValueError: There is no one volume; the message says why.
        OSError: A file can't be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that break a rule of the standard
        try:
            return _volume(path, notices)
        except MALFORMED as error:
            raise ValueError(f"expected headers that can be used: {error}") from error


def _volume(path: Path, notices: list[str]) -> sitk.Image:
    headers = _images(path, notices)
    parts = {file: _slices(file, header) for file, header in headers.items()}
    slices = [part for own in parts.values() for part in own]
    if len(slices) == 1 and not path.is_dir():
        raise ValueError("expected the folder of its series, got one slice")
    ordered, thickness = in_order(slices)
    (height, width), count = ordered[0].shape, len(ordered)
    if thickness is None:
        thickness = _thickness(*next(iter(headers.items())))
    if 4 * count * height * width > MAX_VOLUME_BYTES:
        raise ValueError(f"expected at most {MAX_VOLUME_BYTES} bytes, got {count} slices")
    volume = np.empty((count, height, width), np.float32)
    held: dict[Path, np.ndarray] = {}
    for plane, part in zip(volume, ordered, strict=True):
        if part.file not in held:
            held = {part.file: _frames(part.file, headers[part.file], parts[part.file])}
        plane[:] = held[part.file][part.frame]
    if any(h.get("PhotometricInterpretation") == "MONOCHROME1" for h in headers.values()):
        notices.append("MONOCHROME1: viewers show it inverted; its values are taken as they are")
    image = sitk.GetImageFromArray(volume)
    first = ordered[0]
    image.SetSpacing((float(first.spacing[1]), float(first.spacing[0]), thickness))
    image.SetOrigin(first.position.tolist())
    image.SetDirection(np.column_stack([*first.rows, np.cross(*first.rows)]).ravel().tolist())
    return image


# Which files


def _images(path: Path, notices: list[str]) -> dict[Path, Dataset]:
    """The headers of the files of the one series of images, by file."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in files if not file.name.startswith(".") and not file.is_dir()]
    if links := [file.name for file in files if not file.exists()]:
        raise ValueError(f"{WHOLE}, got {_brief(links)}, which link to files that are not there")
    headers = {file: _header(file) for file in files if is_dicom(file)}
    found = {file: header for file, header in headers.items() if _is_image(header)}
    _check_others([file for file in files if file not in headers], list(found))
    of_images = {header.get(keyword) for header in found.values() for keyword in OWN}
    aside: Counter[str] = Counter()
    for file, header in headers.items():
        if file in found or _class_of(header) == DIRECTORY:
            continue
        is_part = any(keyword in header for keyword in OF_IMAGES)
        is_part |= any(header.get(keyword) in {None, *of_images} for keyword in OWN)
        if is_part and not _is_of_no_image(header):
            lacks = [word for word in ("Rows", "Columns", *OWN) if word not in header]
            lacks = lacks or ["series of its own"]
            raise ValueError(f"{WHOLE}, got {file.name}, which has no {', '.join(lacks)}")
        aside[str(header.get("Modality") or "without a modality")] += 1
    if aside and found:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(aside.items()))
        notices.append(f"files without an image are left aside: {kinds}")
    found = _without_copies(found, notices)
    series: dict[str, list[Path]] = {}
    for file, header in found.items():
        series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(file)
    for keyword in ONE:
        values = {str(header[keyword].value) for header in found.values() if keyword in header}
        if len(values) > 1 and (len(series) == len(found) or keyword in ("PatientID", *PHASES)):
            raise ValueError(f"expected files of one {keyword}, got {_brief(sorted(values))}")
    if len(series) == len(found) >= FEWEST_ALONE:
        notices.append(f"each of its {len(found)} files is a series by its UID; taken as one")
    elif len(series) != 1:
        names = [f"{uid or 'one without a UID'} ({len(of)} files)" for uid, of in series.items()]
        got = _brief(names) or ", ".join(f"{kind} without an image" for kind in aside) or "none"
        raise ValueError(f"expected the files of one DICOM series, got {got}; a folder for each")
    return found


def _check_others(others: Sequence[Path], images: Sequence[Path]) -> None:
    """Raises ValueError for a file that is no DICOM, but called as a slice among slices."""
    called = {_pattern(image) for image in images}
    endings = {_ending(image) for image in images} - {""}
    for file in others:
        name = file.with_suffix("") if file.suffix.lower() in UNFINISHED else file
        is_called = _pattern(name) in called or _ending(name) in endings
        if is_called or (images and file.stat().st_size == 0 and not _ending(name)):
            why = "is empty" if file.stat().st_size == 0 else "does not begin as DICOM"
            raise ValueError(f"{WHOLE}, got {file.name}, which {why}")


def _pattern(file: Path) -> str:
    """A file's name with all numbers alike."""
    return re.sub(r"\d+", "#", file.name.lower())


def _ending(file: Path) -> str:
    """Of its name; the last number of a UID is none."""
    return "" if file.suffix[1:].isdecimal() else file.suffix.lower()


def _is_of_no_image(header: Dataset) -> bool:
    """Whether a header says by its class that the file holds no image."""
    kind = _class_of(header)
    if kind is None:
        return False
    name = UID(str(kind)).name  # the number itself, if it is none of DICOM's
    return kind in SEGMENTATIONS or (name != str(kind) and "Image" not in name)


def _is_image(header: Dataset) -> bool:
    is_grid = "Rows" in header and "Columns" in header
    return is_grid and _class_of(header) not in SEGMENTATIONS


def _class_of(header: Dataset) -> str | None:
    """What kind of object a file holds, None if it does not say."""
    meta = getattr(header, "file_meta", None) or {}
    return header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")


def _header(file: Path) -> Dataset:
    try:
        if _is_deflated(file):
            raise ValueError("deflated as a whole, which says nothing of its size: store it anew")
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        len(list(header.iterall()))  # all of it is parsed
        return header
    except Exception as error:  # a broken header makes pydicom fail in any way
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise ValueError(f"{WHOLE}, got {file.name}: {reason}") from error


def _is_deflated(file: Path) -> bool:
    """Whether pydicom would unpack all of a file before its first element, whatever its size."""
    with open(file, "rb") as opened:
        read_preamble(opened, force=True)
        meta = read_dataset(opened, False, True, stop_when=lambda tag, *_: tag >> 16 != META_GROUP)
        return meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian


def _without_copies(found: dict[Path, Dataset], notices: list[str]) -> dict[Path, Dataset]:
    """One of the files that are the same in all their bytes."""
    kept: dict[Path, Dataset] = {}
    first: dict[str, Path] = {}
    for file, header in found.items():
        uid = str(header.get("SOPInstanceUID", file.name))
        other = first.setdefault(uid, file)
        if other is file or other.read_bytes() != file.read_bytes():
            kept[file] = header
    if len(kept) < len(found):
        notices.append(f"{len(found) - len(kept)} copies of files are left aside")
    return kept


def _brief(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# Where slices lie


def _slices(file: Path, header: Dataset) -> list[Slice]:
    """The slices of a file.

    Raises:
        ValueError: It does not say what they are and where they lie.
    """
    try:
        (frames,) = _numbers(file, "NumberOfFrames", header.get("NumberOfFrames", 1), 1) or (1.0,)
        count = int(frames)
        if count < 1 or count != frames:
            raise ValueError(f"{file.name}: expected a Number of Frames above 0, got {frames:g}")
        groups = header.get("PerFrameFunctionalGroupsSequence")
        if count > 1 and (not groups or len(groups) != count):
            raise ValueError(
                f"expected slices, or frames that each say where they lie; {file.name} has {count} "
                "frames that do not: convert it"
            )
        kind = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
        (samples,) = _numbers(file, "SamplesPerPixel", header.get("SamplesPerPixel", 1), 1) or (1,)
        if samples != 1 or not kind.startswith("MONOCHROME"):
            raise ValueError(f"{file.name}: expected grey values, got {samples:g} of {kind} each")
        if header.get("ModalityLUTSequence"):
            raise ValueError(f"{file.name}: expected a slope and intercept, got a table of values")
        return [_slice(file, header, number) for number in range(count)]
    except MALFORMED as error:
        raise ValueError(f"{file.name}: expected a header that can be used: {error}") from error


def _slice(file: Path, header: Dataset, frame: int) -> Slice:
    def told(group: str, keyword: str, count: int) -> np.ndarray | None:
        found = _numbers(file, keyword, _told(header, frame, group, keyword), count)
        return None if found is None else np.array(found)

    position, rows, spacing = (told(*where) for where in PLACES.values())
    for name, value in zip(PLACES, (position, rows, spacing), strict=True):
        if value is None:
            raise ValueError(f"expected {name} in each slice, got none in {file.name}")
    assert position is not None and rows is not None and spacing is not None
    rows = rows.reshape(2, 3)
    if np.abs(rows @ rows.T - np.eye(2)).max() > SAME:
        raise ValueError(f"{file.name}: expected directions at right angles, got {rows.tolist()}")
    if not (spacing > 0).all():
        raise ValueError(
            f"{file.name}: expected a Pixel Spacing above 0 mm, got {spacing.tolist()}"
        )
    slope, intercept = (
        told("PixelValueTransformationSequence", keyword, 1)
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if slope is not None and slope[0] == 0:
        raise ValueError(f"{file.name}: expected a Rescale Slope that is not 0")
    return Slice(
        file,
        frame,
        position,
        rows,
        spacing,
        (int(header.Rows), int(header.Columns)),
        None if slope is None else float(slope[0]),
        None if intercept is None else float(intercept[0]),
    )


def _numbers(file: Path, keyword: str, values: Any, count: int) -> list[float] | None:
    """What a tag holds, None if nothing; raises ValueError for what are not so many numbers."""
    if values is None or values == "":
        return None
    listed = list(values) if isinstance(values, (list, MultiValue)) else [values]
    try:
        found = [float(value) for value in listed]
    except (TypeError, ValueError):
        found = []
    if len(found) != count or not np.isfinite(found).all():
        raise ValueError(f"{file.name}: expected {count} numbers as {keyword}, got {values!r:.60}")
    return found


# What places a slice: in which functional group of a frame, its keyword, and how many numbers.
PLACES = {
    "Image Position (Patient)": ("PlanePositionSequence", "ImagePositionPatient", 3),
    "Image Orientation (Patient)": ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
    "Pixel Spacing": ("PixelMeasuresSequence", "PixelSpacing", 2),
}


def _told(header: Dataset, frame: int, group: str, keyword: str) -> Any:
    """What a frame's functional groups say, those of all frames, or the header itself."""
    frames = header.get("PerFrameFunctionalGroupsSequence")
    shared = header.get("SharedFunctionalGroupsSequence")
    for groups in ([frames[frame]] if frames else []) + ([shared[0]] if shared else []):
        for item in groups.get(group) or []:
            if item.get(keyword) is not None:
                return item.get(keyword)
    return header.get(keyword)


def in_order(slices: Sequence[Slice]) -> tuple[list[Slice], float | None]:
    """Slices from one end of their volume to the other, and mm from one to the next.

    Returns:
        None as distance of a single one.

    Raises:
        ValueError: They make up no volume; the message says why.
    """
    first = slices[0]
    for name, unlike in (
        ("size", [part.shape != first.shape for part in slices]),
        ("orientation", [np.abs(part.rows - first.rows).max() > SAME for part in slices]),
        ("spacing", [np.abs(part.spacing - first.spacing).max() > SAME for part in slices]),
        ("Rescale Slope", [(part.slope is None) != (first.slope is None) for part in slices]),
        ("Intercept", [(part.intercept is None) != (first.intercept is None) for part in slices]),
    ):
        if any(unlike):
            odd = min(sum(unlike), len(slices) - sum(unlike))
            raise ValueError(
                f"expected slices alike in {name}, got {odd} of {len(slices)} that differ"
            )
    if len(slices) == 1:
        return list(slices), None
    normal = np.cross(*first.rows)
    ordered = sorted(slices, key=lambda part: float(part.position @ normal))
    positions = np.array([part.position for part in ordered])
    depths = positions @ normal
    steps = np.diff(depths)
    if (steps < SAME).any():
        places = 1 + int((steps >= SAME).sum())
        raise ValueError(
            f"expected one slice at each place, got {len(slices)} at {places} places: several "
            "phases, echoes or copies?"
        )
    thickness = float(depths[-1] - depths[0]) / (len(slices) - 1)
    off = positions - positions[0] - np.outer(np.arange(len(slices)) * thickness, normal)
    if (np.abs(off @ normal) > STEP_TOLERANCE * thickness).any():
        raise ValueError(
            f"expected slices at equal distances along their normal, got {steps.min():.4g} to "
            f"{steps.max():.4g} mm: are some of the {len(slices)} missing?"
        )
    if (np.abs(off) > STEP_TOLERANCE * thickness).any():
        raise ValueError(
            f"expected slices one above the other along their normal, got them up to "
            f"{np.abs(off).max():.4g} mm aside: was the gantry tilted?"
        )
    return ordered, thickness


def _thickness(file: Path, header: Dataset) -> float:
    """Of a single slice; raises ValueError where its header does not say."""
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        told = _told(header, 0, "PixelMeasuresSequence", keyword)
        (mm,) = _numbers(file, keyword, told, 1) or (0.0,)
        if mm > 0:
            return mm
    raise ValueError("expected several slices, or a Slice Thickness, got one slice without")


# Values


def _frames(file: Path, header: Dataset, own: Sequence[Slice]) -> np.ndarray:
    """(frames, H, W) float32, rescaled, of a file and its slices.

    Raises:
        ValueError: They can't be unpacked, or are not as many as the header says.
    """
    syntax = _transfer_syntax(header)
    if syntax.is_compressed and syntax != RLELossless:
        return _unpacked(file, header, own)
    try:
        whole = pydicom.dcmread(file, force=True)
        whole.file_meta.TransferSyntaxUID = syntax
        stored = whole.pixel_array.reshape(len(own), *own[0].shape)
    except Exception as error:  # cut off, or a header that pydicom fails on in any way
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise ValueError(f"{WHOLE}, got {file.name}: {reason}") from error
    values = stored.astype(np.float32)
    for plane, part in zip(values, own, strict=True):
        plane *= np.float32(1.0 if part.slope is None else part.slope)
        plane += np.float32(part.intercept or 0.0)
    return values


def _transfer_syntax(header: Dataset) -> UID:
    """That of the file; of one that begins without saying, as it was parsed."""
    meta = getattr(header, "file_meta", None) or {}
    if syntax := meta.get("TransferSyntaxUID"):
        return UID(syntax)
    is_implicit, is_little = header.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian


def _unpacked(file: Path, header: Dataset, own: Sequence[Slice]) -> np.ndarray:
    """As `_frames`, by GDCM, which rescales by itself."""
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        raise ValueError(f"{file.name}: expected MONOCHROME2 of compressed values, got MONOCHROME1")
    is_scaled = any((part.slope or 1.0, part.intercept or 0.0) != (1.0, 0.0) for part in own)
    if len(own) > 1 and is_scaled and _class_of(header) not in RESCALED:
        raise ValueError(f"{file.name}: expected compressed frames without a slope and intercept")
    if len({(part.slope, part.intercept) for part in own}) > 1:
        raise ValueError(f"{file.name}: expected one slope and intercept of all compressed frames")
    try:
        with kept_locale():
            values = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        return values.astype(np.float32).reshape(len(own), *own[0].shape)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{WHOLE}, got {file.name}, which GDCM can't unpack") from error
