"""NIfTI headers as programs write them: volumes lie where nibabel has them, and labels on them."""

import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from data.nifti_to_npz import get_args_parser, main
from scans import VALUES, write_series
from utils.formats.images import read_image
from utils.formats.nifti import TO_LPS, read_header
from utils.formats.npz import CaseError
from utils.formats.scan import read_scan, write_labels
from utils.formats.scan_prompts import RawObject, RawPrompts

PLAIN = np.array([[1.0, 0, 0, -20], [0, 1, 0, -30], [0, 0, 2.5, 100], [0, 0, 0, 1]])
VOXEL = (4, 5, 6)  # z, y, x
SHIFT, TURN, UNSCALED, FLIP = PLAIN.copy(), PLAIN.copy(), PLAIN.copy(), PLAIN.copy()
SHIFT[:3, 3] += 12, 0, 3
angle = np.deg2rad(15)
TURN[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
UNSCALED[2, 2] = 1.0
FLIP[0] *= -1
DIFFER = "sform and qform place it .* mm apart; the sform was taken"


def save(path, sform=PLAIN, codes=(2, 1), qform=PLAIN, values=VALUES, kind=nibabel.Nifti1Image):
    image = kind(values.T, None)
    image.header["pixdim"][1:4] = 1, 1, 2.5
    image.set_qform(qform, codes[1])
    image.set_sform(sform, codes[0])
    nibabel.save(image, path)
    return path


def scan_and_labels(path, output=None):
    """The scan, and its labels as nibabel sees them."""
    scan = read_scan(path, RawPrompts((RawObject(None, [(VOXEL, True)]),)))
    seg = np.zeros(scan.case.shape, np.uint8)
    seg[scan.case.objects[0].clicks[0].point] = 3
    output = output or path.with_name(f"labels_{path.name}")
    write_labels(output, seg, scan)
    return scan, nibabel.load(output)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("codes", [(2, 1), (1, 1), (4, 1), (1, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize(
    "sform",
    [PLAIN, SHIFT, TURN, UNSCALED, FLIP],
    ids=["plain", "shift", "turn", "unscaled", "flip"],
)
def test_labels_lie_on_the_scan_whichever_form_a_viewer_takes(tmp_path, sform, codes, kind):
    path = save(tmp_path / "scan.nii.gz", sform, codes, kind=kind)
    scan, labels = scan_and_labels(path)
    given = nibabel.load(path)
    assert isinstance(labels, kind) and labels.shape == given.shape
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(labels.affine, given.affine)
    for form in ("get_qform", "get_sform"):
        (theirs, their_code), (ours, our_code) = (
            getattr(image.header, form)(coded=True) for image in (given, labels)
        )
        assert their_code == our_code
        if their_code:
            np.testing.assert_array_equal(theirs, ours)
    assert np.argwhere(np.asanyarray(labels.dataobj).T == 3).tolist() == [list(VOXEL)]
    if kind is nibabel.Nifti1Image:  # as ITK sees both, too, which reads no packed NIfTI-2
        first, second = (sitk.ReadImage(name) for name in (path, tmp_path / "labels_scan.nii.gz"))
        assert first.IsSameImageGeometryAs(second, 1e-4, 1e-4)
    same = codes[0] == 0 or codes[1] == 0 or sform is PLAIN
    if codes == (0, 0):
        assert "neither sform nor qform" in scan.notices[0]
    else:
        assert (scan.notices == ()) is same


def test_a_notice_says_that_the_forms_differ(tmp_path):
    scan, _ = scan_and_labels(save(tmp_path / "scan.nii", SHIFT))
    (notice,) = scan.notices
    assert notice.startswith("sform and qform place it 12 mm apart; the sform was taken")


@pytest.mark.parametrize("sform", [SHIFT, TURN, FLIP], ids=["shift", "turn", "flip"])
def test_millimetres_are_those_of_nibabel(tmp_path, sform):
    path = save(tmp_path / "scan.nii", sform)
    x, y, z = (nibabel.load(path).affine @ [*VOXEL[::-1], 1])[:3]
    given = RawPrompts((RawObject(None, [((z, y, x), True)]),), "ras")
    scan = read_scan(path, given)
    image = np.zeros(scan.case.shape, np.uint8)
    image[scan.case.objects[0].clicks[0].point] = 1
    write_labels(tmp_path / "labels.nii", image, scan)
    found = np.argwhere(np.asanyarray(nibabel.load(tmp_path / "labels.nii").dataobj).T)
    assert found.tolist() == [list(VOXEL)]


@pytest.mark.parametrize(
    "sform", [PLAIN, SHIFT, TURN, FLIP], ids=["plain", "shift", "turn", "flip"]
)
def test_other_formats_lie_where_the_sform_has_them(tmp_path, sform):
    path = save(tmp_path / "scan.nii", sform)
    scan, _ = scan_and_labels(path)
    seg = np.ones(scan.case.shape, np.uint8)
    write_labels(tmp_path / "labels.nrrd", seg, scan)
    image = sitk.ReadImage(tmp_path / "labels.nrrd")
    for voxel in ((0, 0, 0), VOXEL[::-1]):
        expected = TO_LPS @ nibabel.load(path).affine @ [*voxel, 1]
        np.testing.assert_allclose(
            image.TransformIndexToPhysicalPoint(voxel), expected[:3], atol=1e-4
        )


def test_values_are_nibabels(tmp_path):
    """Integers of all sizes, floats, slopes, byte orders, and one volume in four dimensions."""
    for dtype in ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8", ">i2", ">f4"):
        values = (VALUES % 100).astype(dtype)
        header = nibabel.Nifti1Header(endianness=">" if ">" in dtype else "<")
        nibabel.save(
            nibabel.Nifti1Image(values.T, PLAIN, header, dtype=values.dtype), tmp_path / "a.nii"
        )
        image = read_image(tmp_path / "a.nii")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values.astype(float))
    for slope, intercept in ((0.5, -3.25), (2.0, 0.0), (1.0, -1024.0), (np.nan, np.nan)):
        path = save(tmp_path / "b.nii")
        content = bytearray(path.read_bytes())
        struct.pack_into("<2f", content, 112, slope, intercept)
        path.write_bytes(content)
        expected = np.asanyarray(nibabel.load(path).dataobj).T
        np.testing.assert_allclose(sitk.GetArrayFromImage(read_image(path)), expected, rtol=1e-6)
    fine = 1 + 1e-9 * VALUES.astype(np.float64)  # float32 would not hold it
    for dtype, expected in (("f8", 2 * fine), ("i4", 2.0 * (VALUES.astype(np.int64) + 2**24))):
        path = save(tmp_path / "d.nii", values=(expected / 2).astype(dtype))
        content = bytearray(path.read_bytes())
        struct.pack_into("<2f", content, 112, 2.0, 0.0)
        path.write_bytes(content)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(path)), expected)
    path = save(tmp_path / "c.nii", values=VALUES[None])
    assert nibabel.load(path).shape[3:] == (1,)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(path)), VALUES)


def test_a_negative_pixdim_beside_an_sform_says_nothing(tmp_path):
    path = save(tmp_path / "scan.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 80, -1.0)
    path.write_bytes(content)
    _, labels = scan_and_labels(path)
    np.testing.assert_array_equal(labels.affine, PLAIN)
    assert read_header(path)["pixdim"][1] == -1
    struct.pack_into("<2h", content, 252, 1, 0)  # by the qform
    path.write_bytes(content)
    with pytest.raises(CaseError, match="expected a spacing .* as pixdim, got -1, 1, 2.5"):
        scan_and_labels(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.set_data_dtype(np.complex64), "expected one 3D volume, got 1 values per v"),
        (lambda h: h.__setitem__("datatype", 128), "got 3 values per voxel"),
        (lambda h: h.__setitem__("datatype", 77), "expected a known datatype, got 77"),
        (lambda h: h.__setitem__("bitpix", 8), "expected as many bits as int16 has as bitpix, g"),
        (lambda h: h.__setitem__("srow_x", [0, 0, 0, 5]), "as sform, and columns that are not 0"),
        (lambda h: h.__setitem__("srow_x", [1, 0.2, 0, 5]), "got a sheared sform"),
        (lambda h: h.__setitem__("scl_inter", np.inf), "expected a finite slope"),
        (lambda h: h.__setitem__("vox_offset", 100), "expected sides, bits and an offset"),
        (lambda h: h.set_data_shape((18, 14, 5, 2)), r"got size \(18, 14, 5, 2\)"),
        (lambda h: h.set_data_shape((18, 140)), r"got size \(18, 140\)"),
        (lambda h: h.set_data_shape((2000, 2000, 2000)), "expected at most 4294967296 bytes"),
    ],
)
def test_headers_that_can_not_be_used(tmp_path, change, message):
    path = save(tmp_path / "scan.nii")
    content = path.read_bytes()
    header = read_header(path)
    header["scl_slope"] = 2.0
    change(header)
    path.write_bytes(header.binaryblock + content[348:])
    with pytest.raises(ValueError, match=f"scan.nii: .*{message}"):
        read_image(path)


@pytest.mark.parametrize("pixdim", [0.0, 3.0])
def test_a_qfac_of_0_is_1(tmp_path, pixdim):
    path = save(tmp_path / "scan.nii", codes=(0, 1))
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 76, pixdim)
    path.write_bytes(content)
    _, labels = scan_and_labels(path)
    np.testing.assert_array_equal(labels.affine, PLAIN)


def test_a_folder_of_dicom_may_be_called_as_a_nifti_file(tmp_path):
    folder = write_series(tmp_path / "scan.nii.gz")
    scan = read_scan(folder, RawPrompts((RawObject(None, [(VOXEL, True)]),)))
    assert scan.case.shape == VALUES.shape


def test_a_qform_that_no_rotation_has_beside_an_sform(tmp_path):
    path = save(tmp_path / "scan.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into("<3f", content, 256, 0.9, 0.9, 0.9)
    path.write_bytes(content)
    scan, labels = scan_and_labels(path)
    assert scan.notices == ("its qform can't be used; the sform, which nibabel takes, was taken",)
    np.testing.assert_array_equal(labels.affine, PLAIN)
    struct.pack_into("<2h", content, 252, 1, 0)
    path.write_bytes(content)
    with pytest.raises(CaseError, match="expected a qform that places the volume"):
        scan_and_labels(path)


def test_pairs_that_nibabel_places_alike(tmp_path, capsys):
    """Labels saved with the image's affine; and others that lie where its qform has it."""
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    seg = (VALUES > 600).astype(np.uint8)
    for name, affine in (("same", SHIFT), ("itk", PLAIN)):
        save(tmp_path / f"imagesTr/{name}_0000.nii.gz", SHIFT)
        nibabel.save(nibabel.Nifti1Image(seg.T, affine), tmp_path / f"labelsTr/{name}.nii.gz")
    options = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), "--modality", "MR"]
    assert main(get_args_parser().parse_args([*options, "--dataset", "Some"])) == 1
    assert [path.stem for path in (tmp_path / "out/MR/MR_Some").iterdir()] == ["MR_Some_same"]
    lines = capsys.readouterr().err
    assert "FAILED itk: itk.nii.gz: expected the grid of itk_0000.nii.gz" in lines
    assert "itk_0000.nii.gz: sform and qform place it 12 mm apart" in lines
