"""Good DICOM series with tags dropped, repeated and garbled; and what pydicom by itself reads."""

import random
import struct
import warnings
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from utils.formats.images import read_image

SHAPE, SPACING, ORIGIN = (5, 6, 7), (2.5, 0.9, 0.8), (-20.0, -30.0, 100.0)
PIXELS = 0x7FE00010
PLACEHOLDER = "LO"  # of which kind none of KEYWORDS is
CT = "1.2.840.10008.5.1.4.1.1.2"
# What readers of series look at, and some that they do not.
KEYWORDS = """
    ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness SpacingBetweenSlices
    InstanceNumber SliceLocation RescaleSlope RescaleIntercept Rows Columns BitsAllocated BitsStored
    HighBit PixelRepresentation SamplesPerPixel PhotometricInterpretation NumberOfFrames PixelData
    SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID Modality PatientName
    GantryDetectorTilt PixelPaddingValue WindowCenter PlanarConfiguration
""".split()
NUMBERS = [
    "",
    "0",
    "-1",
    "1",
    "2.5",
    "1e30",
    "-1e-30",
    "nan",
    "inf",
    "16",
    "8",
    "12",
    "abc",
    "1\\2",
]
TEXTS = ["", "1.2.3", "1.2.9", "MONOCHROME1", "RGB", "PALETTE COLOR", "MR", "a" * 70]


def series(rng: np.random.Generator) -> list[Dataset]:
    """Slices with values and rescaling of their own."""
    values = rng.integers(-900, 900, SHAPE).astype(np.int16)
    made = []
    for i, plane in enumerate(values):
        part = Dataset()
        part.preamble = bytes(128)
        part.file_meta = FileMetaDataset()
        part.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        part.SOPClassUID = part.file_meta.MediaStorageSOPClassUID = CT
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{i + 1}"
        part.SeriesInstanceUID, part.StudyInstanceUID, part.Modality = "1.2.3", "1.2", "CT"
        part.InstanceNumber, part.SliceThickness = i + 1, SPACING[0]
        part.ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + SPACING[0] * i]
        part.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        part.PixelSpacing = list(SPACING[1:])
        part.RescaleSlope, part.RescaleIntercept = 1 + i, -10 * i
        part.Rows, part.Columns = SHAPE[1:]
        part.SamplesPerPixel, part.PhotometricInterpretation = 1, "MONOCHROME2"
        part.BitsAllocated, part.BitsStored, part.HighBit, part.PixelRepresentation = 16, 16, 15, 1
        part[PIXELS] = DataElement(PIXELS, "OW", plane.tobytes())
        made.append(part)
    return made


def garbled(part: Dataset, rng: random.Random) -> None:
    """Change a tag of a slice, or what it holds."""
    keyword = rng.choice(KEYWORDS)
    how = rng.randrange(4)
    if how == 0:
        if keyword in part:
            del part[keyword]
        return
    if (
        how == 1
        and keyword in part
        and isinstance(part[keyword].value, (list, pydicom.multival.MultiValue))
    ):
        values = [str(v) for v in part[keyword].value]
        values[rng.randrange(len(values))] = rng.choice(NUMBERS)
        text = "\\".join(values)
    else:
        text = rng.choice(NUMBERS if rng.random() < 0.7 else TEXTS)
    number = pydicom.datadict.tag_for_keyword(keyword)
    if keyword == "PixelData":
        stored = part.get("PixelData", b"")[: rng.randrange(0, 90, 2)]
        part[PIXELS] = DataElement(PIXELS, "OW", stored)
        return
    if pydicom.datadict.dictionary_VR(number) in ("US", "US or SS"):
        few = (0, 1, 6, 7, 8, 12, 16, 32)
        part[number] = DataElement(
            number, "US", rng.choice(few) if rng.random() < 0.7 else rng.randrange(2**16)
        )
    else:  # as a text, which pydicom writes as it is
        part[number] = DataElement(number, PLACEHOLDER, text)


def with_true_kinds(content: bytes) -> bytes:
    """A file whose tags are of the kinds that the standard gives them, whatever they hold."""
    for keyword in KEYWORDS:
        number = pydicom.datadict.tag_for_keyword(keyword)
        tag = struct.pack("<HH", number >> 16, number & 0xFFFF)
        kind = pydicom.datadict.dictionary_VR(number).encode()
        content = content.replace(tag + PLACEHOLDER.encode(), tag + kind)
    return content


def write_variant(folder: Path, number: int) -> None:
    """A series of which one to three slices, or all, say something else, in a new folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _write_variant(folder, number)


def _write_variant(folder: Path, number: int) -> None:
    rng = random.Random(number)
    parts = series(np.random.default_rng(number))
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.3:
            seed = rng.random()
            for part in parts:
                garbled(part, random.Random(seed))
        else:
            garbled(rng.choice(parts), rng)
    if rng.random() < 0.1:
        parts.append(rng.choice(parts))
    if rng.random() < 0.1:
        parts.pop(rng.randrange(len(parts)))
    folder.mkdir()
    rng.shuffle(parts)
    for i, part in enumerate(parts):
        path = folder / f"{i:02}.dcm"
        part.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=False)
        path.write_bytes(with_true_kinds(path.read_bytes()))
        if rng.random() < 0.02:
            content = path.read_bytes()
            path.write_bytes(content[: rng.randrange(len(content))])


def number(part: Dataset, keyword: str, default: float) -> float:
    """What a tag holds; one that is empty holds nothing."""
    value = part.get(keyword)
    return default if value in (None, "") else float(value)


def check_variant(folder: Path) -> str:
    """Read a folder: "read", or why it was refused.

    Raises:
        AssertionError: What was read is not what pydicom reads of the files.
    """
    try:
        image = read_image(folder)
    except ValueError as error:
        return str(error).removeprefix(f"{folder.name}: ")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        contents = {path.read_bytes(): path for path in sorted(folder.iterdir())}
        parts = [pydicom.dcmread(path, force=True) for path in contents.values()]
        normal = np.cross(*np.reshape(parts[0].ImageOrientationPatient, (2, 3)))
        ordered = sorted(parts, key=lambda part: float(normal @ part.ImagePositionPatient))
        values = np.array(
            [
                part.pixel_array * number(part, "RescaleSlope", 1.0)
                + number(part, "RescaleIntercept", 0.0)
                for part in ordered
            ]
        )
        found = sitk.GetArrayFromImage(image)
        assert found.shape == values.shape, f"{found.shape} and {values.shape}"
        assert np.allclose(found, values, rtol=1e-5, atol=1e-3), "values"
        rows, columns = found.shape[1:]
        for z, part in enumerate(ordered):
            first, second = np.reshape(part.ImageOrientationPatient, (2, 3)).astype(float)
            down, across = map(float, part.PixelSpacing)
            for y, x in ((0, 0), (rows - 1, columns - 1)):
                expected = np.array(part.ImagePositionPatient, float)
                expected += y * down * second + x * across * first
                place = np.array(image.TransformIndexToPhysicalPoint((x, y, z)))
                # Slices may lie a little off the places of a regular grid.
                far = 0.3 * image.GetSpacing()[2] if len(ordered) > 1 else 0.0
                assert np.abs(place - expected).max() <= far + 1e-3 * np.abs(expected).max(), (
                    "place"
                )
    return "read"
