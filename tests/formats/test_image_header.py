"""Headers of image files: what ITK would do with them, and is kept from."""

import gzip
import random
import struct
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from conftest import ROOT
from scans import VALUES, image_of, written
from utils.formats.images import read_image

NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 8 8 8\nencoding: raw\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_UCHAR\n"


@pytest.fixture
def nii(tmp_path):
    """The bytes of a NIfTI file."""
    return written(tmp_path / "whole.nii").read_bytes()


def test_whole_files_are_read(tmp_path, nii):
    """In several parts of gzip, with more at the end, big-endian, or misnamed."""
    contents = {
        "parts.nii.gz": gzip.compress(nii[:500]) + gzip.compress(nii[500:]),
        "more.nii.gz": gzip.compress(nii) + b"\0" * 50,
        "plain.nii.gz": nii,
        "more.nii": nii + b"more",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / name)), VALUES)
    header = nibabel.Nifti1Header(endianness=">")
    swapped = nibabel.Nifti1Image(VALUES.T.astype(">i2"), np.diag([1, 1, 3, 1]), header)
    nibabel.save(swapped, tmp_path / "big.nii.gz")
    for name in ("a.nrrd", "a.mha"):
        image = image_of()
        image.SetMetaData("note", "what a program says of it")
        sitk.WriteImage(image, str(tmp_path / name), useCompression=True)
    for name in ("big.nii.gz", "a.nrrd", "a.mha"):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / name)), VALUES)


@pytest.mark.parametrize("kept", [0, 100, 347, 500, -1])
@pytest.mark.parametrize("is_gzip", [False, True])
def test_files_that_are_cut_off(tmp_path, nii, kept, is_gzip):
    path = tmp_path / ("cut.nii.gz" if is_gzip else "cut.nii")
    message = f"{path.name}: expected a whole file, got one that is cut off"
    path.write_bytes(gzip.compress(nii)[:kept] if is_gzip else nii[:kept])
    with pytest.raises(ValueError, match=message):
        read_image(path)
    path.write_bytes(gzip.compress(nii[:kept]))  # cut off before it was packed
    with pytest.raises(ValueError, match=message):
        read_image(path)


@pytest.mark.parametrize(
    ("at", "kind", "value", "message"),
    [
        (88, "f", 0.0, r"expected a spacing \(x, y, z\) above 0 mm as pixdim, got .*, 0$"),
        (84, "f", np.nan, "expected a spacing"),
        (304, "f", np.inf, "expected finite numbers as sform"),
        (260, "f", np.nan, "expected finite numbers as qform"),
        (108, "f", np.inf, "expected sides, bits and an offset above 0"),
        (44, "h", -3, "expected sides, bits and an offset above 0"),
        (40, "h", 9, "expected sides, bits and an offset above 0"),
        (344, "i", 0, "expected a NIfTI file"),
        (0, "i", 540, "expected a NIfTI file"),
    ],
)
def test_headers_of_nifti_that_itk_would_mend_or_hang_on(tmp_path, nii, at, kind, value, message):
    content = bytearray(nii)
    struct.pack_into(f"<{kind}", content, at, value)
    if at in (84, 88):  # where there is an sform, it says the spacing
        struct.pack_into("<h", content, 254, 0)
    (tmp_path / "scan.nii").write_bytes(content)
    with pytest.raises(ValueError, match=f"scan.nii: {message}"):
        read_image(tmp_path / "scan.nii")


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("a.nrrd", NRRD + "data file: /etc/hostname\n\n", "expected its data in the same file"),
        ("a.nrrd", NRRD + "data file: /tmp/a:=b\n\n", "expected its data in the same file"),
        ("a.nrrd", NRRD + "DataFile: x%d.raw 1 3 1\n\n", "expected its data in the same file"),
        ("a.nrrd", NRRD + "sizes: 8 8 8\n\n", "expected sizes once"),
        ("a.nrrd", NRRD + "content: %s%n\n\n", "expected numbers or a short text as content"),
        ("a.nrrd", NRRD + "content: " + "a" * 5000 + "\n\n", "a short text as content"),
        ("a.nrrd", NRRD + "colour: red\n\n", "expected the fields of NRRD"),
        ("a.nrrd", NRRD + "kinds", "cut off in its header"),
        ("a.nrrd", NRRD + "#\n" * 10_001, "a header of at most 10000 lines"),
        ("a.nrrd", "NRRD0009\n\n", "expected a NRRD file"),
        ("a.nrrd", NRRD + "# x\rdata file: /etc/hostname\n\n", "expected text as line 6"),
        ("a.nrrd", NRRD + "k:=v\rdata file: /etc/hostname\n\n", "expected text as line 6"),
        ("a.nrrd", NRRD.replace("8 8 8", "30000 30000 20") + "\n", "expected at most 4294967296 "),
        ("a.mha", META + "ElementDataFile = /etc/hostname\n", "its data in the same file"),
        ("a.mha", META + "ElementDataFile = LIST\n", "its data in the same file"),
        ("a.mha", META + "ElementDataFile = a%s%s.raw 1 5 1\n", "its data in the same file"),
        ("a.mha", META + "NDims = 4294967296\n", "expected NDims once"),
        ("a.mha", "NDims = 4294967296\nElementDataFile = LOCAL\n", "expected 3 dimensions"),
        ("a.mha", META + "Offset =\nElementDataFile = LOCAL\n", "expected Offset as numbers, 3"),
        ("a.mha", META + "BinaryData = no\nElementDataFile = LOCAL\n", "as True or False"),
        ("a.mha", META + "ElementSpacing = 1 0 1\nElementDataFile = LOCAL\n", "a spacing above 0"),
        ("a.mha", META + "ElementSpacing = 1 nan 1\nElementDataFile = LOCAL\n", "as numbers, 3"),
        ("a.mha", META[:-5] + "X\nElementDataFile = LOCAL\n", "expected ElementType as one of"),
        ("a.jpg", "words\n", "expected .nii.gz, .nii, .nrrd, .mha or DICOM"),
        ("a.mha", META + "Name = " + "a" * 99_999, "expected lines of at most 10000 bytes"),
        ("a.mha", META + "words\n", "expected lines KEY = VALUE"),
        ("a.mha", META + "HeaderSize = 10\nElementDataFile = LOCAL\n", "expected HeaderSize = 0"),
        (
            "a.mha",
            META + "ElementToIntensityFunctionSlope = 2\nElementDataFile = LOCAL\n",
            "expected ElementToIntensityFunctionSlope = 1",
        ),
        ("a.mha", META + "BinaryData = False\nElementDataFile = LOCAL\n1 2", "got a text"),
        ("a.mha", META + "Name = \udcff\n", "expected text as line 5"),
    ],
)
def test_headers_in_text_that_can_not_be_followed(tmp_path, name, header, message):
    (tmp_path / name).write_bytes(header.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        read_image(tmp_path / name)


def test_damage_to_packed_data_is_seen(tmp_path, nii):
    """MetaIO prints a line and goes on; a gzip stream that became longer never tells."""
    for name in ("a.mha", "a.nrrd", "a.nii.gz"):
        path = tmp_path / name
        image = image_of(np.random.default_rng(1).integers(0, 50, (20, 30, 40)).astype(np.int16))
        sitk.WriteImage(image, str(path), useCompression=True)
        content = path.read_bytes()
        rng, refused = random.Random(0), 0
        start = len(content) // 4
        for _ in range(60):
            broken = bytearray(content)
            broken[rng.randrange(start, len(content) - 10)] ^= 1 << rng.randrange(8)
            path.write_bytes(broken)
            try:
                found = sitk.GetArrayFromImage(read_image(path))
                np.testing.assert_array_equal(found, sitk.GetArrayFromImage(image))
            except ValueError:
                refused += 1
        assert refused >= 55
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="expected a whole file, got one that is cut off"):
            read_image(path)
    plain = written(tmp_path / "b.mha").read_bytes()
    (tmp_path / "b.mha").write_bytes(plain[:-1])
    with pytest.raises(ValueError, match="b.mha: expected a whole file"):
        read_image(tmp_path / "b.mha")


def test_a_sheared_grid_is_refused(tmp_path):
    affine = np.array([[1.0, 0, 0, 0], [0, 1, 0.3, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(VALUES.T, affine)
    image.set_qform(np.diag([1.0, 1, 3, 1]), code=1)
    nibabel.save(image, tmp_path / "scan.nii")
    with pytest.raises(ValueError, match="scan.nii: expected axes at right angles"):
        read_image(tmp_path / "scan.nii")
    shear = "TransformMatrix = 1 0 0 0.3 1 0 0 0 1\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes((META + shear).encode() + bytes(8**3))
    with pytest.raises(ValueError, match="a.mha: expected axes at right angles"):
        read_image(tmp_path / "a.mha")


READ_ALL = """
import sys
from pathlib import Path
from utils.formats.images import read_image
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path, flush=True)
    try:
        read_image(path)
    except ValueError as error:
        assert str(error).startswith(path.name)
"""
VALUES_TO_TRY = (
    """-1 0 3 1e9 99999999999999999999 nan inf %s%n LOCAL LIST none ((( (1,0,0)""".split()
)
VALUES_TO_TRY += ["", "7 6 5", "0 0 0", "a" * 300, "1 " * 90, "4294967296 1 1"]


def broken(content: bytes, name: str, rng: random.Random) -> bytes:
    """A file whose header says something else in one to three places."""
    if name.endswith(".nii"):
        changed = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            at, value = rng.randrange(348), rng.choice((b"\0", b"\xff", b"\x7f", rng.randbytes(1)))
            changed[at : at + 4] = value * 4
        return bytes(changed)
    start = content.index(b"\n\n" if name.endswith(".nrrd") else b"ElementDataFile")
    lines = content[:start].decode().split("\n")
    mark = ": " if name.endswith(".nrrd") else " = "
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(1, len(lines))
        line = lines[i].split(mark)[0] + mark + rng.choice(VALUES_TO_TRY)
        lines[i : i + rng.randint(0, 1)] = [line]
    return "\n".join(lines).encode() + content[start:]


@pytest.mark.parametrize("name", ["a.nii", "a.nrrd", "a.mha"])
def test_no_broken_header_ends_or_holds_up_the_process(name, tmp_path):
    content, rng = written(tmp_path / name).read_bytes(), random.Random(0)
    (tmp_path / "broken").mkdir()
    for i in range(300):
        path = tmp_path / f"broken/{i}{name[1:]}"
        path.write_bytes(broken(content, name, rng))
    command = [sys.executable, "-c", READ_ALL, str(tmp_path / "broken")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout.splitlines()[-1] + result.stderr[-2000:]
