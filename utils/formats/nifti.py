"""NIfTI files, by nibabel.

Where the two forms of a header that place a volume disagree, ITK and nibabel, and viewers with
them, take different ones. Here a volume lies where nibabel has it: by the sform, if it has a code,
else by the qform. Labels keep both forms of the scan's header, and so lie on it in every viewer.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.spatialimages import HeaderDataError

from utils.formats.image_header import CHUNK, CUT_OFF
from utils.formats.npz import MAX_VOLUME_BYTES

Header = nibabel.Nifti1Header  # Nifti2Header is one, too
# By the header's first number, which is its size: https://nifti.nimh.nih.gov
HEADERS = {348: (nibabel.Nifti1Header, b"n+1"), 540: (nibabel.Nifti2Header, b"n+2")}
FORM_FIELDS = {
    "qform": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    "sform": ("srow_x", "srow_y", "srow_z"),
}
SHEAR = 1e-3  # cosine of two axes, by rounding
AFTER_HEADER = 4  # bytes that say whether extensions follow
FORMS_DIFFER = 1e-3  # mm, at a corner of the volume
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from NIfTI's RAS


def read_header(path: Path) -> Header:
    """The header of a .nii or .nii.gz file, with nothing that follows it.

    Raises:
        ValueError: It can't be used; the message says why.
        OSError: It can't be read.
    """
    with open(path, "rb") as raw:
        try:
            return _read_header(_unpacked(raw))
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise ValueError(CUT_OFF) from None


def read_nifti(path: Path) -> tuple[sitk.Image, Header]:
    """The volume of a .nii or .nii.gz file, placed as nibabel places it, and its header.

    Values with a slope and intercept become floats.

    Raises:
        ValueError: It is not one 3D volume, is malformed or cut off; the message says why.
        OSError: It can't be read.
    """
    with open(path, "rb") as raw:
        file = _unpacked(raw)
        try:
            header = _read_header(file)
            shape, dtype = volume_shape(header), _dtype_of(header)
            size = math.prod(shape) * dtype.itemsize
            if size > MAX_VOLUME_BYTES:
                raise ValueError(f"expected at most {MAX_VOLUME_BYTES} bytes, got {size}")
            file.seek(header.get_data_offset())
            content = file.read(size)
            for _ in range(MAX_VOLUME_BYTES // CHUNK):  # its end tells whether a gzip file is right
                if file is raw or not file.read(CHUNK):
                    break
        except (EOFError, zlib.error, gzip.BadGzipFile):
            content, size = b"", -1
    if len(content) != size:
        raise ValueError(CUT_OFF)
    values = np.frombuffer(content, dtype).reshape(shape[::-1])
    values = values.astype(dtype.newbyteorder("="), copy=False)
    slope, intercept = _scaling(header)
    if (slope, intercept) != (1.0, 0.0):
        is_short = dtype.itemsize < 4 or dtype.newbyteorder("=") == np.float32
        values = values.astype(np.float32 if is_short else np.float64)
        values *= slope
        values += intercept
    return placed(values, affine_of(header)), header


def placed(values: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """(z, y, x) values and the (4, 4) affine of (x, y, z) in RAS -> an image, in LPS as ITK's."""
    image = sitk.GetImageFromArray(values)
    lps = TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def volume_shape(header: Header) -> tuple[int, int, int]:
    """(x, y, z) of the one volume of a file; raises ValueError if it holds another number."""
    sides = header.get_data_shape()
    if len(sides) < 3 or any(side != 1 for side in sides[3:]):
        raise ValueError(f"expected one 3D volume, got size {tuple(sides)}")
    x, y, z = sides[:3]
    return x, y, z


def affine_of(header: Header) -> np.ndarray:
    """(4, 4), voxels (x, y, z) -> mm in RAS, as nibabel has it.

    Raises:
        ValueError: There is none, or its axes are not at right angles.
    """
    form = form_of(header)
    try:
        affine = header.get_best_affine()
    except (HeaderDataError, ValueError) as error:
        raise ValueError(f"expected a {form} that places the volume: {error}") from error
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (spacing > 0).all():
        raise ValueError(f"expected finite numbers as {form}, and columns that are not 0")
    cosines = affine[:3, :3] / spacing
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > SHEAR:
        raise ValueError(f"expected axes at right angles, got a sheared {form}")
    return affine


def form_of(header: Header) -> str:
    """Which part of a header places the volume."""
    if header["sform_code"] > 0:
        return "sform"
    return "qform" if header["qform_code"] > 0 else "pixdim"


def notices_of(header: Header) -> list[str]:
    """What a user may want to know of where a header places the volume."""
    form = form_of(header)
    if form == "pixdim":
        return ["its header has neither sform nor qform: left and right are a guess"]
    if form == "qform" or header["qform_code"] <= 0:
        return []
    far = (np.array(volume_shape(header)) - 1).astype(float)
    corners = np.array([[0.0, 0, 0, 1], [*far, 1]])
    try:
        apart = np.abs((affine_of(header) - header.get_qform()) @ corners.T)[:3].max()
    except (HeaderDataError, ValueError):
        return ["its qform can't be used; the sform, which nibabel takes, was taken"]
    if apart <= FORMS_DIFFER:
        return []
    return [
        f"sform and qform place it {apart:.3g} mm apart; the sform was taken, as nibabel does "
        "(ITK takes the qform); labels in NIfTI keep both"
    ]


def write_nifti(path: Path, labels: np.ndarray, header: Header | None, affine: np.ndarray) -> None:
    """Write labels where a scan lies.

    Args:
        path: The new .nii or .nii.gz file.
        labels: (z, y, x) uint8.
        header: The scan's, whose forms are kept as they are; None: it was no NIfTI.
        affine: (4, 4) in RAS, where there is no header.

    Raises:
        OSError: It can't be written.
    """
    if header is None:
        image = nibabel.Nifti1Image(labels.T, affine)
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
    else:
        own = type(header)(endianness=header.endianness)
        forms = (*FORM_FIELDS["qform"], *FORM_FIELDS["sform"], "qform_code", "sform_code")
        for field in (*forms, "xyzt_units"):
            own[field] = header[field]
        own.set_data_dtype(np.uint8)
        own.set_data_shape(labels.shape[::-1])
        own["pixdim"][:4] = header["pixdim"][:4]
        kind = nibabel.Nifti2Image if isinstance(own, nibabel.Nifti2Header) else nibabel.Nifti1Image
        image = kind(labels.T, None, own)
    nibabel.save(image, path)


def _unpacked(raw: BinaryIO) -> BinaryIO:
    """An open file, or what it is compressed of, whatever its name is."""
    is_gzip = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    # A gzip.GzipFile has all that is used here.
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_gzip else raw


def _read_header(file: BinaryIO) -> Header:
    content = file.read(max(HEADERS))
    if content.startswith(b"version https://git-lfs"):
        raise ValueError("expected a NIfTI file, got a pointer of Git LFS: git lfs pull fetches it")
    if len(content) < min(HEADERS):
        raise EOFError
    for order in "<>":
        (size,) = struct.unpack(f"{order}i", content[:4])
        if size not in HEADERS or len(content) < size:
            continue
        kind, magic = HEADERS[size]
        header = kind(content[:size], endianness=order, check=False)
        if bytes(header["magic"]).rstrip(b"\0") == magic:
            _check(header)
            return header
    raise ValueError("expected a NIfTI file with its data in it")


def _check(header: Header) -> None:
    rank, *sides = header["dim"].tolist()
    bits, offset = int(header["bitpix"]), float(header["vox_offset"])
    if offset == 0:
        header["vox_offset"] = offset = int(header["sizeof_hdr"]) + AFTER_HEADER
    is_placed = int(header["sizeof_hdr"]) <= offset < 2**31
    if not 1 <= rank <= 7 or min(sides[:rank]) < 1 or bits < 1 or not is_placed:
        raise ValueError(
            f"expected sides, bits and an offset above 0 in its header, got {(rank, *sides)}, "
            f"{bits}, {offset:g}"
        )
    for form in ("qform", "sform"):
        names = FORM_FIELDS[form]
        if header[f"{form}_code"] > 0 and not all(np.isfinite(header[n]).all() for n in names):
            raise ValueError(f"expected finite numbers as {form} in its header")
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1  # as nibabel takes it
    spacing = np.array(header["pixdim"][1 : 1 + min(rank, 3)], float)
    if form_of(header) != "sform" and not (np.isfinite(spacing) & (spacing > 0)).all():
        got = ", ".join(f"{mm:g}" for mm in spacing)
        raise ValueError(f"expected a spacing (x, y, z) above 0 mm as pixdim, got {got}")


def _dtype_of(header: Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise ValueError(f"expected a known datatype, got {int(header['datatype'])}") from error
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        values = len(dtype.names) if dtype.names else 1
        raise ValueError(f"expected one 3D volume, got {values} values per voxel, {dtype}")
    if 8 * dtype.itemsize != header["bitpix"]:
        raise ValueError(
            f"expected as many bits as {dtype} has as bitpix, got {int(header['bitpix'])}"
        )
    return dtype


def _scaling(header: Header) -> tuple[float, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise ValueError(f"expected a finite slope and intercept: {error}") from error
    return (1.0 if slope is None else slope), (0.0 if intercept is None else intercept)
