"""Image files and DICOM series -> SimpleITK images, checked, and turned to LPS on demand."""

import locale
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from utils.formats.image_header import check_header, is_dicom
from utils.formats.npz import MAX_VOLUME_BYTES

LPS = "LPS"  # a growing index leads to the left, back and head
POSITION = "0020|0032"  # DICOM's Image Position (Patient)
# The same in all slices: Image Orientation (Patient), Pixel Spacing.
ALIKE = ("0020|0037", "0028|0030")
STEP_TOLERANCE = 0.25  # distances of slices by which one may lie off its place
GEOMETRY_TOLERANCE = 1e-3  # voxels, and cosines of a direction, between image and labels


def read_image(path: Path) -> sitk.Image:
    """A 3D image file, or the one DICOM series in a folder, as it is stored.

    Raises:
        ValueError: It is not an image, or not one 3D volume.
    """
    try:
        image = read_series(path) if path.is_dir() else _read_file(path)
        _check_volume(image)
    except FileNotFoundError as error:
        raise ValueError(f"{path.name}: expected an image, there is no such file") from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path.name}: expected an image: {reason}") from error
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return image


def _check_volume(image: sitk.Image) -> None:
    values, kind = image.GetNumberOfComponentsPerPixel(), image.GetPixelIDTypeAsString()
    if image.GetDimension() != 3 or values != 1 or "complex" in kind:
        raise ValueError(
            f"expected one 3D volume, got size {image.GetSize()} with {values} values per voxel, "
            f"{kind}"
        )
    cosines = np.reshape(image.GetDirection(), (3, 3))
    if not (np.abs(cosines.T @ cosines - np.eye(3)) < GEOMETRY_TOLERANCE).all():
        raise ValueError("expected axes at right angles, got a sheared grid")


def _read_file(path: Path) -> sitk.Image:
    """A file that is not a folder; raises ValueError, or RuntimeError if ITK can't read it."""
    check_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    one = sitk.Image([1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    values = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
    size = values * one.GetSizeOfPixelComponent()
    if size > MAX_VOLUME_BYTES:
        raise ValueError(f"expected at most {MAX_VOLUME_BYTES} bytes, got {size}")
    return reader.Execute()


@contextmanager
def kept_locale() -> Iterator[None]:
    """GDCM, which reads DICOM for ITK, leaves the process with the locale C, without UTF-8."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def read_series(folder: Path) -> sitk.Image:
    """The DICOM series in a folder, its slices in order.

    Raises:
        ValueError: It holds none or several, or slices are missing.
        RuntimeError: A file can't be read.
    """
    with kept_locale():
        return _read_series(folder)


def _read_series(folder: Path) -> sitk.Image:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        names = ", ".join(series) or "none"
        raise ValueError(f"expected the files of one DICOM series, got {names}; a folder for each")
    reader = sitk.ImageSeriesReader()
    files = reader.GetGDCMSeriesFileNames(str(folder), series[0])
    # GDCM leaves what it can't read aside.
    others = {path.name for path in folder.iterdir()} - {Path(file).name for file in files}
    for path in (folder / name for name in sorted(others - {"DICOMDIR"})):
        if path.is_file() and (path.stat().st_size == 0 or is_dicom(path)):
            raise ValueError(f"expected whole files of one series, got {path.name}")
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    slices = range(len(files))
    for tag in ALIKE:
        values = {reader.GetMetaData(i, tag) for i in slices if reader.HasMetaDataKey(i, tag)}
        numbers = np.array([value.split("\\") for value in values], float)
        if len(numbers) and np.ptp(numbers, axis=0).max() > GEOMETRY_TOLERANCE:
            raise ValueError("expected slices of one orientation and spacing")
    if all(reader.HasMetaDataKey(i, POSITION) for i in slices):
        positions = np.array([reader.GetMetaData(i, POSITION).split("\\") for i in slices], float)
        normal = np.reshape(image.GetDirection(), (3, 3))[:, 2]
        thickness = image.GetSpacing()[2]
        steps = positions - positions[0] - np.outer(slices, thickness * normal)
        if (np.abs(steps) > STEP_TOLERANCE * thickness).any():
            raise ValueError(
                f"expected slices at equal distances along their normal; are some "
                f"of the {len(files)} missing, or was the gantry tilted?"
            )
    return image


def read_oriented(path: Path) -> sitk.Image:
    """A 3D image turned to LPS: a growing index leads to the left (x), back (y) and upwards (z).

    Raises:
        ValueError: It is not an image, or not one 3D volume.
    """
    return turned_to_lps(read_image(path))


def turned_to_lps(image: sitk.Image) -> sitk.Image:
    """The image with axes exchanged and flipped; itself if there is nothing to turn."""
    turn = sitk.DICOMOrientImageFilter()
    if turn.GetOrientationFromDirectionCosines(image.GetDirection()) == LPS:
        return image
    turn.SetDesiredCoordinateOrientation(LPS)
    return turn.Execute(image)


def read_pair(
    image_path: Path, labels_path: Path
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Read an image and its labels on one grid as (z, y, x) arrays, turned to LPS; and spacing.

    Raises:
        ValueError: They are not on one grid, or not images; the message names the file.
    """
    image, labels = read_oriented(image_path), read_oriented(labels_path)
    if not image.IsSameImageGeometryAs(labels, GEOMETRY_TOLERANCE, GEOMETRY_TOLERANCE):
        raise ValueError(
            f"{labels_path.name}: expected the grid of {image_path.name}, {_grid(image)}, got "
            f"{_grid(labels)}"
        )
    x, y, z = image.GetSpacing()
    return sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(labels), (z, y, x)


def _grid(image: sitk.Image) -> str:
    numbers = (
        f"{name} {', '.join(f'{value:.6g}' for value in values)}"
        for name, values in (
            ("size", image.GetSize()),
            ("spacing", image.GetSpacing()),
            ("origin", image.GetOrigin()),
            ("direction", image.GetDirection()),
        )
    )
    return "; ".join(numbers)
