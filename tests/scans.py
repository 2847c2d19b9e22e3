"""Scans for the tests: images in any orientation, and DICOM series."""

import numpy as np
import SimpleITK as sitk

from conftest import SHAPE, SPACING
from utils.formats.dicom import kept_locale

VALUES = np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16)
IDENTITY = np.eye(3)


def image_of(values=VALUES, direction=IDENTITY) -> sitk.Image:
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((-70.5, 30.25, 11))
    image.SetDirection(direction.ravel().tolist())
    return image


def written(path, values=VALUES, direction=IDENTITY):
    sitk.WriteImage(image_of(values, direction), str(path))
    return path


def write_series(folder, values=VALUES, direction=IDENTITY, uid="1.2.3", skip=()):
    """A DICOM series, its files named against the order of its slices."""
    folder.mkdir(exist_ok=True)
    image = image_of(values, direction)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i in range(len(values)):
        if i in skip:
            continue
        plane = image[:, :, i]
        position = image.TransformIndexToPhysicalPoint((0, 0, i))
        axes = np.reshape(direction, (3, 3)).T[:2].ravel()
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{i + 1}",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0020|0032": "\\".join(f"{v:.8g}" for v in position),
            "0020|0037": "\\".join(f"{v:.8g}" for v in axes),
            "0020|0013": str(i),
            "0018|0050": f"{SPACING[0]}",
            "0028|1052": "-100",
            "0028|1053": "2",
        }
        for key, value in tags.items():
            plane.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}_{len(values) - i:03d}.dcm"))
        with kept_locale():
            writer.Execute(plane)
    return folder
