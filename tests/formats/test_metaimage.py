"""MetaImage files: what ITK writes is read as ITK reads it, and no line leads to another file."""

import numpy as np
import pytest
import SimpleITK as sitk

from utils.formats.images import read_image

SIDES = (4, 3, 5)  # (z, y, x)
TURN = (0.36, 0.48, -0.8, -0.8, 0.6, 0.0, 0.48, 0.64, 0.6)
HEAD = "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(
    "kind", [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)] + ["f4", "f8"]
)
def test_what_itk_writes_is_read_as_itk_reads_it(tmp_path, kind, is_packed):
    values = np.random.default_rng(0).normal(60, 20, SIDES).astype(kind)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.7, 1.3, 2.5))
    image.SetOrigin((-10.5, 3.25, 7.0))
    image.SetDirection(TURN)
    image.SetMetaData("note", "what a program says of it = all")
    path = tmp_path / "a.mha"
    sitk.WriteImage(image, str(path), useCompression=is_packed)
    ours, theirs = read_image(path), sitk.ReadImage(str(path))
    assert ours.GetPixelID() == theirs.GetPixelID()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), values)
    assert ours.IsSameImageGeometryAs(theirs, 1e-9, 1e-9)


def test_other_words_for_the_same(tmp_path):
    """As older programs write them, and in the other byte order."""
    values = np.arange(60, dtype=">i2").reshape(SIDES)
    header = """ObjectType = Image
NDims = 3
BinaryData = T
ElementByteOrderMSB = 1
Position = 1 2 3
Orientation = 0 1 0 1 0 0 0 0 1
ElementSize = 2 3 4
DimSize = 5 3 4
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
    path = tmp_path / "a.mha"
    path.write_bytes(header.encode() + values.tobytes())
    ours, theirs = read_image(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), values)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs), values)
    assert ours.IsSameImageGeometryAs(theirs, 1e-9, 1e-9)


@pytest.mark.parametrize(
    "lines",
    [
        "Offset =\nElementDataFile = LOCAL\nElementDataFile = {}\n",
        "ElementMin =\nElementDataFile = LOCAL\nElementDataFile = {}\n",
        "Color = 1 1\nElementDataFile = LOCAL\nElementDataFile = {}\n",
        "\u2003ElementDataFile = LOCAL\nElementDataFile = {}\n",
        "ElementDataFile =\u2003LOCAL\nElementDataFile = {}\n",
        "ElementDataFile = {}\n",
    ],
)
def test_no_line_leads_to_another_file(tmp_path, lines):
    secret = tmp_path / "secret.raw"
    secret.write_bytes(b"*" * 8)
    path = tmp_path / "a.mha"
    path.write_bytes((HEAD + lines.format(secret)).encode() + b"own data")
    try:
        values = sitk.GetArrayFromImage(read_image(path))
    except ValueError as error:
        assert str(error).startswith("a.mha: expected")
    else:
        assert (values != ord("*")).any()
