"""Image files and DICOM series -> SimpleITK images, checked, and turned to LPS on demand."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from utils.formats.dicom import read_dicom
from utils.formats.image_header import check_nrrd, is_dicom
from utils.formats.metaimage import read_metaimage
from utils.formats.nifti import notices_of, read_nifti
from utils.formats.npz import MAX_VOLUME_BYTES
from utils.formats.scan_prompts import SCAN_ENDINGS, ending_of

LPS = "LPS"  # a growing index leads to the left, back and head
GEOMETRY_TOLERANCE = 1e-3  # voxels, and cosines of a direction, between image and labels


def read_image(path: Path, notices: list[str] | None = None) -> sitk.Image:
    """A 3D image file, or the one DICOM series in a folder, as it is stored.

    Args:
        path: The file or folder.
        notices: List to which is added what the user may want to know.

    Raises:
        ValueError: It is not an image, or not one 3D volume.
    """
    said = [] if notices is None else notices
    try:
        if path.is_dir() or (ending_of(path) is None and is_dicom(path)):
            image = read_dicom(path, said)
        elif is_nifti(path):
            image, header = read_nifti(path)
            said += notices_of(header)
        elif path.suffix.lower() == ".nrrd":
            image = _read_nrrd(path)
        elif path.suffix.lower() == ".mha":
            image = read_metaimage(path)
        else:
            raise ValueError(
                f"expected {', '.join(SCAN_ENDINGS)} or DICOM, got another kind of file"
            )
        _check_volume(image)
    except FileNotFoundError as error:
        raise ValueError(f"{path.name}: expected an image, there is no such file") from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path.name}: expected an image: {reason}") from error
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return image


def is_nifti(path: Path) -> bool:
    """Whether the name of a file, which may not be there yet, ends as those of NIfTI files."""
    return path.name.lower().endswith((".nii", ".nii.gz")) and not path.is_dir()


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


def _read_nrrd(path: Path) -> sitk.Image:
    """A .nrrd file; raises ValueError, or RuntimeError if ITK can't read it."""
    check_nrrd(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    one = sitk.Image([1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    values = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
    size = values * one.GetSizeOfPixelComponent()
    if size > MAX_VOLUME_BYTES:
        raise ValueError(f"expected at most {MAX_VOLUME_BYTES} bytes, got {size}")
    return reader.Execute()


def turned_to_lps(image: sitk.Image) -> sitk.Image:
    """The image with axes exchanged and flipped; itself if there is nothing to turn.

    A growing index leads to the left (x), back (y) and upwards (z).
    """
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
    notices: list[str] = []
    image = turned_to_lps(read_image(image_path, notices))
    labels = read_labels(labels_path, image, image_path.name, notices)
    x, y, z = image.GetSpacing()
    return sitk.GetArrayFromImage(image), labels, (z, y, x)


def read_labels(
    path: Path, image: sitk.Image, name: str, notices: Sequence[str] = ()
) -> np.ndarray:
    """Read labels on the grid of an image that is turned to LPS -> (D, H, W), turned as well.

    Args:
        path: The labels.
        image: The image.
        name: Its file's, for messages.
        notices: What was noticed when it was read.

    Raises:
        ValueError: They are not on its grid, or not an image; the message names the file.
    """
    own: list[str] = []
    labels = turned_to_lps(read_image(path, own))
    if not image.IsSameImageGeometryAs(labels, GEOMETRY_TOLERANCE, GEOMETRY_TOLERANCE):
        said = [
            f"; {whose}: {line}"
            for whose, lines in ((name, notices), (path.name, own))
            for line in lines
        ]
        raise ValueError(
            f"{path.name}: expected the grid of {name}, {_grid(image)}, got "
            f"{_grid(labels)}{''.join(said)}"
        )
    return sitk.GetArrayFromImage(labels)


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
