"""Scans: turned to LPS and back, prompts in voxels and mm, grey levels, formats, bad input."""

import itertools
import json
import locale

import numpy as np
import pytest
import SimpleITK as sitk

from conftest import SHAPE, SPACING
from scans import IDENTITY, VALUES, image_of, write_series, written
from utils.formats import nifti
from utils.formats import scan as scan_module
from utils.formats.dicom import kept_locale
from utils.formats.intensity import CT_WINDOWS, scale_percentiles, scale_window
from utils.formats.npz import CaseError
from utils.formats.scan import read_scan, turned_back, write_labels
from utils.formats.scan_prompts import RawDrawing, RawObject, RawPrompts, read_prompts

VOXEL = (3, 4, 15)
BOX = (2.0, 3.0, 4.0, 5.0, 6.0, 16.0)


def turn(axis: int, degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    i, j = (k for k in range(3) if k != axis)
    matrix = np.eye(3)
    matrix[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return matrix


def prompts(box=BOX, clicks=((VOXEL, True),), space="voxel", window=None) -> RawPrompts:
    return RawPrompts((RawObject(box, list(clicks)),), space, window)


def directions():
    """All 48 ways to store a volume along the axes, straight, oblique, and half-way in between."""
    for order, signs in itertools.product(
        itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
    ):
        for tilt in (IDENTITY, turn(0, 20) @ turn(2, -11), turn(0, 45) @ turn(2, 45)):
            yield tilt @ (np.eye(3)[:, list(order)] * signs)


def test_labels_overlay_the_scan_exactly_in_any_orientation(tmp_path):
    values = VALUES.copy()
    values[VOXEL] = 5000
    for direction in directions():
        path = written(tmp_path / "scan.nrrd", values, direction)
        scan = read_scan(path, prompts())
        (click,), box = scan.case.objects[0].clicks, scan.case.objects[0].box
        assert scan.case.image[click.point] == 255
        seg = np.zeros(scan.case.shape, np.uint8)
        seg[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))] = 1
        seg[click.point] = 2
        write_labels(tmp_path / "labels.nii.gz", seg, scan)
        labels, image = (sitk.ReadImage(tmp_path / name) for name in ("labels.nii.gz", "scan.nrrd"))
        assert labels.IsSameImageGeometryAs(image, 1e-5, 1e-5)
        expected = np.zeros(SHAPE, np.uint8)
        expected[2:5, 3:6, 4:16] = 1
        expected[VOXEL] = 2
        np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), expected)


def test_a_case_is_turned_to_lps_with_its_spacing(tmp_path):
    direction = np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]])  # x, y, z lead to A, I and L
    scan = read_scan(written(tmp_path / "scan.nii.gz", direction=direction), prompts())
    depth, height, width = SHAPE
    assert scan.case.shape == (height, width, depth)
    np.testing.assert_allclose(scan.case.spacing, (SPACING[1], SPACING[2], SPACING[0]))
    expected = scale_percentiles(VALUES).transpose(1, 2, 0)[::-1, ::-1]
    np.testing.assert_array_equal(scan.case.image, expected)


@pytest.mark.parametrize("space", ["lps", "ras"])
def test_millimetres_are_voxels(tmp_path, space):
    for direction in list(directions())[1::7]:
        path = written(tmp_path / "scan.mha", direction=direction)
        image, flip = sitk.ReadImage(path), np.array([-1, -1, 1] if space == "ras" else [1, 1, 1])

        def mm(z, y, x, image=image, flip=flip):
            return tuple((flip * image.TransformContinuousIndexToPhysicalPoint((x, y, z)))[::-1])

        expected = read_scan(path, prompts(box=None)).case.objects
        given = prompts(box=None, clicks=[(mm(3.2, 3.7, 15.3), True)], space=space)
        assert read_scan(path, given).case.objects == expected
        if (
            np.abs(np.abs(direction).max(axis=0) - 1).max() < 1e-9
        ):  # else a box of mm is a wider one
            expected = read_scan(path, prompts(clicks=())).case.objects
            corners = (*mm(1.5, 2.5, 3.5), *mm(4.5, 5.5, 15.5))
            given = prompts(box=corners, clicks=(), space=space)
            assert read_scan(path, given).case.objects == expected


def test_a_box_in_millimetres_may_reach_beyond_the_volume_but_has_to_touch_it(tmp_path):
    path = written(tmp_path / "scan.nii")
    everything = (-500.0,) * 3 + (500.0,) * 3
    box = read_scan(path, prompts(box=everything, clicks=(), space="lps")).case.objects[0].box
    assert (box.start, box.stop) == ((0, 0, 0), SHAPE)
    notices = read_scan(path, prompts(box=everything, clicks=(), space="lps")).notices
    assert notices == ("the box of object 1 reaches beyond the volume, and was cut",)
    aside = (100.0, 100.0, 100.0, 120.0, 120.0, 120.0)
    with pytest.raises(CaseError, match=r"scan.nii: box of object 1: expected it to touch"):
        read_scan(path, prompts(box=aside, clicks=(), space="lps"))


def test_numbers_between_voxels_are_rounded_upwards_in_the_file_and_in_mm(tmp_path):
    for direction in (IDENTITY, -IDENTITY):
        written(tmp_path / "scan.nrrd", direction=direction)
        given = prompts(box=None, clicks=[((3.5, 4.0, 2.5), True)])
        (click,) = read_scan(tmp_path / "scan.nrrd", given).case.objects[0].clicks
        expected = np.array([4, 4, 3])
        if direction is not IDENTITY:
            expected = np.array(SHAPE) - 1 - expected
        np.testing.assert_array_equal(click.point, expected)
    sitk.WriteImage(sitk.GetImageFromArray(VALUES), str(tmp_path / "unit.nrrd"))
    for first in (1.0, 2.0):  # edges in the middle of voxels
        given = prompts(box=(first,) * 3 + (first + 4,) * 3, clicks=(), space="lps")
        box = read_scan(tmp_path / "unit.nrrd", given).case.objects[0].box
        assert (box.start, box.stop) == ((first + 1,) * 3, (first + 5,) * 3)


def test_axes_of_the_file_along_those_of_the_case(tmp_path):
    direction = np.array([[0.0, 0, -1], [1, 0, 0], [0, 1, 0]])  # x leads back, y up, z right
    scan = read_scan(written(tmp_path / "scan.nii", direction=direction), prompts())
    assert scan.axes == (("y", False), ("x", False), ("z", True))
    volume = np.zeros(scan.case.shape, np.uint8)
    volume[2, 3, 1] = 1  # y 2, x 3, z the second from its end
    assert np.argwhere(turned_back(volume, scan)).tolist() == [[SHAPE[0] - 2, 2, 3]]


def test_windows_and_percentiles_are_the_challenges(tmp_path):
    hu = (VALUES - 800).astype(np.int16)
    path = written(tmp_path / "scan.nii.gz", hu)
    for window, level_width in (("bone", CT_WINDOWS["bone"]), ("10,250", (10, 250))):
        scan = read_scan(path, prompts(window=window))
        np.testing.assert_array_equal(scan.case.image, scale_window(hu, *level_width))
        assert scan.notices == ()
    scan = read_scan(path, prompts())
    np.testing.assert_array_equal(scan.case.image, scale_percentiles(hu))
    assert "looks like CT in HU" in scan.notices[0]
    with pytest.raises(CaseError, match="expected abdomen, lung, brain, bone or LEVEL,WIDTH"):
        read_scan(path, prompts(window="liver"))


def test_a_dicom_series_is_read_with_its_rescaling_and_geometry(tmp_path):
    values = (2 * (VALUES // 2) - 100).astype(np.int16)  # that its integers hold
    for direction in (IDENTITY, turn(0, 30), turn(1, -90)):
        folder = write_series(tmp_path / "series", values, direction)
        scan = read_scan(folder, prompts(window="200,900"))
        in_file = read_scan(
            written(tmp_path / "scan.nrrd", values, direction), prompts(window="200,900")
        )
        np.testing.assert_array_equal(scan.case.image, in_file.case.image)
        assert scan.case.objects == in_file.case.objects
        np.testing.assert_allclose(scan.case.spacing, in_file.case.spacing, rtol=1e-5)
        write_labels(tmp_path / "labels.nii.gz", scan.case.image, scan)
        labels = sitk.ReadImage(tmp_path / "labels.nii.gz")
        assert labels.IsSameImageGeometryAs(image_of(direction=direction), 1e-4, 1e-4)


def test_reading_dicom_leaves_the_locale_alone(tmp_path):
    before = locale.setlocale(locale.LC_ALL)
    read_scan(write_series(tmp_path / "series"), prompts())
    assert locale.setlocale(locale.LC_ALL) == before


def test_a_series_with_a_gap_two_series_and_none(tmp_path):
    with pytest.raises(CaseError, match="gap: expected slices at equal distances"):
        read_scan(write_series(tmp_path / "gap", skip=(4,)), prompts())
    write_series(tmp_path / "two")
    with pytest.raises(CaseError, match="two: expected the files of one DICOM series, got 1.2.3"):
        read_scan(write_series(tmp_path / "two", uid="1.2.4"), prompts())
    cut = write_series(tmp_path / "cut")
    last = min(cut.iterdir())  # GDCM would leave it aside
    for content in (last.read_bytes()[:200], b""):
        last.write_bytes(content)
        with pytest.raises(CaseError, match=f"expected whole files of one series, got {last.name}"):
            read_scan(cut, prompts())
    (tmp_path / "none").mkdir()
    with pytest.raises(CaseError, match="none: expected the files of one DICOM series, got none"):
        read_scan(tmp_path / "none", prompts())


def retag(path, tag, value):
    """Change a tag of a DICOM file."""
    with kept_locale():
        image = sitk.ReadImage(str(path))
        image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(path))
        writer.Execute(image)


def test_slices_of_a_series_that_differ_or_drift(tmp_path):
    turned = write_series(tmp_path / "turned")
    retag(sorted(turned.iterdir())[2], "0020|0037", r"0\1\0\1\0\0")
    with pytest.raises(CaseError, match="turned: expected slices alike in orientation, got 1 of"):
        read_scan(turned, prompts())
    tilted = write_series(tmp_path / "tilted")
    for i, path in enumerate(sorted(tilted.iterdir(), reverse=True)):  # 0.1 mm a slice of 3 mm
        position = (-70.5, 30.25 + 0.1 * i, 11 + SPACING[0] * i)
        retag(path, "0020|0032", "\\".join(f"{mm:.4f}" for mm in position))
    with pytest.raises(CaseError, match="tilted: expected slices one above the other"):
        read_scan(tilted, prompts())


def test_scans_that_cannot_be_used(tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"\x1f\x8b no image")
    with pytest.raises(
        CaseError, match="broken.nii.gz: expected a whole file, got one that is cut off"
    ):
        read_scan(broken, prompts())
    sitk.WriteImage(sitk.Image([4, 5, 6, 2], sitk.sitkInt16), str(tmp_path / "4d.nii"))
    with pytest.raises(CaseError, match=r"4d.nii: expected one 3D volume, got size \(4, 5, 6, 2\)"):
        read_scan(tmp_path / "4d.nii", prompts())
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), str(tmp_path / "rgb.nrrd"))
    with pytest.raises(CaseError, match="rgb.nrrd: expected one 3D volume, .* 3 values per voxel"):
        read_scan(tmp_path / "rgb.nrrd", prompts())
    values = VALUES.astype(np.float32)
    values[1, 2, 3] = np.nan
    with pytest.raises(CaseError, match="nan.nrrd: expected finite values"):
        read_scan(written(tmp_path / "nan.nrrd", values), prompts())
    with pytest.raises(CaseError, match="dark.nii: expected voxels above 0"):
        read_scan(written(tmp_path / "dark.nii", -VALUES), prompts())
    with pytest.raises(CaseError, match="air.nii: expected HU in the window 0 to 80, got -2"):
        read_scan(written(tmp_path / "air.nii", VALUES - 3000), prompts(window="brain"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            prompts(box=(2.0, 3, 4, 11, 6, 16)),
            "box of object 1: expected it within the volume, 10 x 14 x 18 voxels",
        ),
        (prompts(box=(2.0, 3, 4, 2, 6, 16)), "box of object 1: expected whole numbers z0 < z1"),
        (prompts(box=(2.5, 3, 4, 4, 6, 16)), "box of object 1: expected whole numbers"),
        (prompts(clicks=[((3.0, 14.0, 2.0), True)]), "click of object 1: expected a point of the"),
        (prompts(clicks=[((-0.6, 4.0, 2.0), True)]), "click of object 1: expected a point of the"),
        (prompts(clicks=[((1e300, 4.0, 2.0), True)]), "click of object 1: expected a point of the"),
        (prompts(box=(9e307,) * 3 + (1e308,) * 3, space="ras"), "box of object 1: expected it to"),
        (prompts(box=None, clicks=()), "expected a box or a click, got none"),
        (RawPrompts((RawObject(BOX),) * 256), "expected at most 255 objects, got 256"),
    ],
)
def test_prompts_that_do_not_fit(tmp_path, given, message):
    with pytest.raises(CaseError, match="scan.nii: " + message):
        read_scan(written(tmp_path / "scan.nii"), given)


def test_labels_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    scan = read_scan(written(tmp_path / "scan.nii"), prompts())
    seg = np.ones(SHAPE, np.uint8)
    (tmp_path / "outputs").mkdir()
    write = nifti.write_nifti
    monkeypatch.setattr(
        scan_module, "write_nifti", lambda path, seg, *at: write(path, 0 * seg, *at)
    )
    with pytest.raises(OSError, match="can't be written whole; is the disk full"):
        write_labels(tmp_path / "outputs/labels.nii.gz", seg, scan)
    assert not list((tmp_path / "outputs").iterdir())


def test_labels_are_not_left_on_another_grid(tmp_path, monkeypatch):
    scan = read_scan(written(tmp_path / "scan.nii"), prompts())
    (tmp_path / "outputs").mkdir()
    write = nifti.write_nifti
    monkeypatch.setattr(
        scan_module, "write_nifti", lambda path, seg, *at: write(path, seg, None, np.eye(4))
    )
    with pytest.raises(OSError, match=r"\.nii\.gz can't hold its grid"):
        write_labels(tmp_path / "outputs/labels.nii.gz", np.ones(SHAPE, np.uint8), scan)
    assert not list((tmp_path / "outputs").iterdir())


def test_a_prompt_file(tmp_path):
    path = tmp_path / "scan.json"
    content = {
        "space": "ras",
        "window": "lung",
        "objects": [{"box": [1, 2, 3, 4, 5, 6.5], "clicks": [[1, 2, 3, 0]]}, {}],
    }
    path.write_text(json.dumps(content))
    first = RawObject((1, 2, 3, 4, 5, 6.5), [((1, 2, 3), False)])
    assert read_prompts(path) == RawPrompts((first, RawObject()), "ras", "lung")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON: Expecting property name"),
        ("[" * 100_000, "maximum recursion depth"),
        ("[]", "the file: expected a JSON object, got list"),
        (
            '{"objects": [], "spaces": "lps"}',
            "the file: expected the keys objects, space, window, o",
        ),
        ('{"objects": []}', "objects: expected a list of at least one"),
        ('{"objects": [{}], "space": "mm"}', "space: expected one of voxel, lps, ras, got 'mm'"),
        ('{"objects": [{"box": [1, 2, 3]}]}', "box of object 1: expected 6 numbers"),
        ('{"objects": [{"box": [1, 2, 3, 4, 5, NaN]}]}', "box of object 1: expected 6 numbers"),
        ('{"objects": [{"box": [1, 2, 3, 4, 5, true]}]}', "box of object 1: expected 6 numbers"),
        ('{"objects": [{"clicks": [[1, 2, 3]]}]}', "click of object 1: expected 4 numbers"),
        ('{"objects": [{"clicks": [[1, 2, 3, 2]]}]}', "click of object 1: expected 1 .* got 2"),
        ('{"objects": [{"clicks": 3}]}', "clicks of object 1: expected a list, got 3"),
        ('{"objects": [{"box": null, "box": 3}]}', "expected each key once, got box, box"),
        (
            '{"objects": [{"clicks": [[1, 2, 3, ' + 400 * "9" + "]]}]}",
            "click of object 1: expected 4 numbers",
        ),
        ('{"objects": [3]}', "object 1: expected a JSON object, got int"),
        ('{"objects": [{}], "overlap": "last"}', "overlap: expected one of highest, first, got"),
        ('{"objects": [{}], "labels": "../a.nii"}', "labels: expected the name of a file beside"),
        ('{"objects": [{"initial": 0}]}', "initial of object 1: expected a label from 1 on, got 0"),
        ('{"objects": [{"initial": 2}]}', "initial: expected labels of a file in `labels`, each"),
        ('{"objects": [{"drawings": [{}]}]}', "drawing of object 1: expected one of box, scribb"),
        ('{"objects": [{"drawings": [{"lasso": []}]}]}', "drawing of object 1: expected a list of"),
        ('{"objects": [{"drawings": [{"lasso": [[1, 2]]}]}]}', "drawing of object 1: expected 3"),
        (
            '{"objects": [{"drawings": [{"box": [1, 2, 3, 2, 4, 5], "label": 2}]}]}',
            "drawing of object 1: expected a label 1 .* got 2",
        ),
        (
            '{"objects": [{"drawings": [{"box": [1, 2, 3, 2, 4, 5], "after": 1}]}]}',
            "drawing of object 1: expected after as 0 to 0 clicks, got 1",
        ),
    ],
)
def test_a_prompt_file_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "scan.json"
    path.write_text(text)
    with pytest.raises(CaseError, match="scan.json: " + message):
        read_prompts(path)


def test_drawings_are_in_the_same_voxels_in_any_orientation(tmp_path):
    drawn = [
        RawDrawing("box", ((2, 3, 4), (3, 6, 9)), True, 0),
        RawDrawing("scribble", ((2, 3, 4), (2, 5, 4), (2, 5, 7)), False, 1),
        RawDrawing("lasso", ((1, 4, 4), (1, 4, 8), (5, 4, 8)), True, 1),
    ]
    raw = RawPrompts((RawObject(None, [(VOXEL, True)], drawn),))
    expected = np.zeros((3, *SHAPE), bool)
    expected[0, 2, 3:6, 4:9] = True
    expected[1, 2, 3:6, 4] = expected[1, 2, 5, 4:8] = True
    expected[
        2,
        [1] * 5 + [2, 2, 2, 2, 3, 3, 3, 4, 4, 5],
        4,
        [4, 5, 6, 7, 8, 5, 6, 7, 8, 6, 7, 8, 7, 8, 8],
    ] = True
    for direction in (IDENTITY, turn(1, 90), turn(0, 180) @ turn(2, 90)):
        scan = read_scan(written(tmp_path / "scan.nrrd", direction=direction), raw)
        for i, drawing in enumerate(scan.case.objects[0].drawings):
            volume = np.zeros(scan.case.shape, bool)
            part = (
                slice(a, a + n) for a, n in zip(drawing.start, drawing.inside.shape, strict=True)
            )
            volume[tuple(part)] = drawing.inside
            np.testing.assert_array_equal(turned_back(volume, scan), expected[i])
            assert (drawing.is_region, drawing.is_foreground, drawing.after) == (
                (True, True, 0),
                (False, False, 1),
                (True, True, 1),
            )[i]


@pytest.mark.parametrize(
    ("drawing", "message"),
    [
        (
            RawDrawing("scribble", ((1, 1, 1), (2, 2, 2)), True, 0),
            "expected it in one slice, got 2 x 2 x 2",
        ),
        (
            RawDrawing("box", ((1, 1, 1), (3, 4, 5)), True, 0),
            "expected it in one slice, got 2 x 3 x 4",
        ),
        (
            RawDrawing("lasso", ((1, 1, 1), (1, 2, 99)), True, 0),
            "lasso of object 1: expected it within",
        ),
    ],
)
def test_drawings_that_do_not_fit(tmp_path, drawing, message):
    with pytest.raises(CaseError, match=message):
        read_scan(written(tmp_path / "scan.mha"), RawPrompts((RawObject(None, [], [drawing]),)))


def test_labels_to_begin_with(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 3:6, 4:9], labels[6, 7, 8] = 3, 7
    direction = turn(1, 90)
    written(tmp_path / "before.nii.gz", labels, direction)
    objects = (RawObject(initial=7), RawObject(BOX), RawObject(initial=3, clicks=[(VOXEL, True)]))
    raw = RawPrompts(objects, overlap="first", labels=tmp_path / "before.nii.gz")
    scan = read_scan(written(tmp_path / "scan.nii.gz", direction=direction), raw)
    assert scan.case.is_replayed and scan.case.overlap == "first"
    expected = np.select([labels == 7, labels == 3], [1, 3])
    np.testing.assert_array_equal(turned_back(scan.case.prev_pred, scan), expected)
    with pytest.raises(CaseError, match="before.nii.gz: expected the grid of scan.mha"):
        read_scan(written(tmp_path / "scan.mha"), raw)
    objects[0].initial = 5
    with pytest.raises(CaseError, match="initial of object 1: expected a label of the file, got 5"):
        read_scan(tmp_path / "scan.nii.gz", raw)
