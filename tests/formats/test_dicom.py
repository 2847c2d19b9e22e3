"""DICOM as scanners, archives and planning systems leave it: read rightly, or refused by cause."""

import io

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from utils.formats.dicom import kept_locale
from utils.formats.images import read_image

SHAPE = (6, 9, 11)
SPACING, ORIGIN = (2.5, 0.9, 0.8), (-20.0, -30.0, 100.0)  # (z, y, x) and (x, y, z)
VALUES = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
OBLIQUE = (0.96, 0.28, 0, 0, 0, -1)
CT, SR, SEG = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.88.67",
    "1.2.840.10008.5.1.4.1.1.66.4",
)
ENHANCED = "1.2.840.10008.5.1.4.1.1.2.1"


def header(sop=CT, series="1.2.3", modality="CT", instance="1.2.3.1") -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = sop
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = instance
    made.SeriesInstanceUID, made.StudyInstanceUID, made.Modality = series, "1.2", modality
    return made


def set_pixels(made: Dataset, values: np.ndarray) -> None:
    made.Rows, made.Columns = values.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * values.dtype.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(values.dtype.kind == "i")
    made.PixelData = values.tobytes()


def slices(values=VALUES, orientation=(1, 0, 0, 0, 1, 0), series="1.2.3") -> list[Dataset]:
    normal = np.cross(orientation[:3], orientation[3:])
    made = []
    for i, plane in enumerate(values):
        part = header(series=series, instance=f"{series}.{i + 1}")
        part.InstanceNumber = i + 1
        part.ImagePositionPatient = [f"{mm:.8g}" for mm in ORIGIN + i * SPACING[0] * normal]
        part.ImageOrientationPatient = [f"{cosine:.8g}" for cosine in orientation]
        part.PixelSpacing, part.SliceThickness = list(SPACING[1:]), SPACING[0]
        part.RescaleSlope, part.RescaleIntercept = 1, 0
        set_pixels(part, plane)
        made.append(part)
    return made


def save(folder, parts, ending=".dcm", prefix="im"):
    folder.mkdir(exist_ok=True)
    order = np.random.default_rng(1).permutation(len(parts))  # names say nothing of the order
    for number, part in zip(order, parts, strict=True):
        part.save_as(folder / f"{prefix}{number:03}{ending}", enforce_file_format=True)
    return folder


def read(path):
    """Values, and what was said."""
    notices = []
    image = read_image(path, notices)
    return sitk.GetArrayFromImage(image), notices, image


def refused(path, message):
    with pytest.raises(ValueError, match=f"^{path.name}: .*{message}"):
        read_image(path)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE, (0, 1, 0, 0, 0, -1)])
def test_a_series_has_the_values_and_the_place_of_its_slices(tmp_path, orientation):
    parts = slices(orientation=orientation)
    values, notices, image = read(save(tmp_path / "a", parts))
    assert values.dtype == np.float32 and not notices
    np.testing.assert_array_equal(values, VALUES)
    row, column = np.reshape(orientation, (2, 3))
    for z, y, x in ((0, 0, 0), (5, 8, 10), (2, 3, 4)):
        expected = ORIGIN + z * SPACING[0] * np.cross(row, column) + y * SPACING[1] * column
        expected = expected + x * SPACING[2] * row
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((x, y, z)), expected)


# Values


@pytest.mark.parametrize("scale", [1e-5, 1.0, 300.0])
def test_each_slice_has_its_own_slope_and_intercept(tmp_path, scale):
    parts, expected = slices(), []
    for i, part in enumerate(parts):
        slope, intercept = (1.0, 0.0) if i == 0 else (scale * (0.1 + i), -3.5 * i)
        part.RescaleSlope, part.RescaleIntercept = f"{slope:.8g}", f"{intercept:.8g}"
        expected.append(VALUES[i] * float(part.RescaleSlope) + intercept)
    values, *_ = read(save(tmp_path / "a", parts))
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_slices_of_other_bits_and_signs_are_read_by_their_own(tmp_path):
    parts = slices()
    expected = VALUES.astype(float)
    set_pixels(parts[1], (VALUES[1] + 1000).astype(np.uint16))
    parts[1].RescaleIntercept = -1000
    set_pixels(parts[2], (VALUES[2] // 16).astype(np.int8))
    expected[2] = VALUES[2] // 16
    set_pixels(parts[3], (VALUES[3].astype(np.uint16) & 0x0FFF))  # 12 bits with a sign
    parts[3].BitsStored, parts[3].HighBit, parts[3].PixelRepresentation = 12, 11, 1
    values, *_ = read(save(tmp_path / "a", parts))
    np.testing.assert_array_equal(values, expected)


def test_an_inverted_picture_keeps_its_values_and_is_named(tmp_path):
    parts = slices()
    for part in parts:
        part.PhotometricInterpretation = "MONOCHROME1"
    values, (notice,), _ = read(save(tmp_path / "a", parts))
    np.testing.assert_array_equal(values, VALUES)
    assert notice.startswith("MONOCHROME1: viewers show it inverted")


def test_compressed_values_are_unpacked(tmp_path):
    parts = slices()
    for part in parts:
        part.compress(RLELossless)
    values, *_ = read(save(tmp_path / "rle", parts))
    np.testing.assert_array_equal(values, VALUES)
    folder = save(tmp_path / "gdcm", slices())
    for path in folder.iterdir():  # as GDCM packs them
        with kept_locale():
            image = sitk.ReadImage(str(path))
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.UseCompressionOn()
            writer.SetFileName(str(path))
            writer.Execute(image)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEG2000Lossless
    values, *_ = read(folder)
    np.testing.assert_array_equal(values, VALUES)


def change(**values):
    """A function that sets, or with None removes, what a slice says."""

    def apply(part: Dataset) -> None:
        for keyword, value in values.items():
            if value is None:
                del part[keyword]
            else:
                setattr(part, keyword, value)

    return apply


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change(RescaleSlope=None), "alike in Rescale Slope, got 1 of 6 that differ"),
        (change(RescaleIntercept=None), "alike in Intercept, got 1 of 6 that differ"),
        (change(RescaleSlope=0), "expected a Rescale Slope that is not 0"),
        (change(ImagePositionPatient=None), r"expected Image Position \(Patient\) in each slice"),
        (change(ImageOrientationPatient=None), r"expected Image Orientation \(Patient\) in each"),
        (change(PixelSpacing=None), "expected Pixel Spacing in each slice, got none in im"),
        (change(PixelSpacing=[0, 1]), "expected a Pixel Spacing above 0 mm"),
        (change(PixelSpacing=[0.9, 0.7]), "alike in spacing, got 1 of 6 that differ"),
        (change(ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0]), "expected directions at right angl"),
        (change(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "alike in orientation, got 1 of 6"),
        (change(ImagePositionPatient=[-20, -30, 100]), "6 at 5 places: several phases, echoes"),
        (change(ImagePositionPatient=[-20, -30, 104]), "expected slices at equal distances"),
        (change(ImagePositionPatient=[-20, -20, 105]), "expected slices one above the other"),
        (
            change(PhotometricInterpretation="RGB", SamplesPerPixel=3),
            "expected grey values, got 3 of RGB each",
        ),
        (
            change(PhotometricInterpretation="PALETTE COLOR"),
            "expected grey values, got 1 of PALETTE",
        ),
        (change(NumberOfFrames=0), "expected a Number of Frames above 0, got 0"),
        (change(RescaleSlope=[1, 2]), r"expected 1 numbers as RescaleSlope, got \[1.0, 2.0\]"),
        (change(ModalityLUTSequence=[Dataset()]), "expected a slope and intercept, got a table"),
    ],
)
def test_a_slice_unlike_the_others_is_named(tmp_path, apply, message):
    parts = slices()
    apply(parts[2])
    refused(save(tmp_path / "a", parts), message)


def test_what_all_slices_lack_is_not_made_up(tmp_path):
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        parts = slices()
        for part in parts:
            del part[keyword]
        refused(save(tmp_path / keyword, parts), "in each slice, got none in im000.dcm")
    parts = slices()
    for part in parts:
        del part.RescaleSlope, part.RescaleIntercept, part.InstanceNumber, part.SliceThickness
    values, *_ = read(save(tmp_path / "plain", parts))
    np.testing.assert_array_equal(values, VALUES)


# Which files


def test_slices_that_are_missing_of_two_sizes_or_repeated(tmp_path):
    parts = slices()
    refused(save(tmp_path / "gap", parts[:2] + parts[3:]), "2.5 to 5 mm: are some of the 5 missi")
    parts = slices()
    set_pixels(parts[4], VALUES[4, :, :-1].copy())
    refused(save(tmp_path / "sizes", parts), "alike in size, got 1 of 6 that differ")
    phases = slices() + slices()
    for i, part in enumerate(phases):
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{i + 1}"
    refused(save(tmp_path / "phases", phases), "got 12 at 6 places: several phases")
    values, (notice,), _ = read(save(save(tmp_path / "copies", slices()), slices(), prefix="copy"))
    np.testing.assert_array_equal(values, VALUES)
    assert notice == "6 copies of files are left aside"


def test_several_series_and_slices_that_are_a_series_each(tmp_path):
    folder = tmp_path / "many"
    for i in range(5):
        save(folder, slices(series=f"1.2.3.{i}"), prefix=f"s{i}_")
    refused(folder, r"got 1.2.3.0 \(6 files\), 1.2.3.1 \(6 files\), 1.2.3.2 \(6 files\) and 2 more")
    parts = slices()
    for i, part in enumerate(parts):
        part.SeriesInstanceUID = f"1.2.3.{i}"
    values, (notice,), _ = read(save(tmp_path / "each", parts))
    np.testing.assert_array_equal(values, VALUES)
    assert notice == "each of its 6 files is a series by its UID; taken as one"


def test_what_is_no_image_is_left_aside(tmp_path):
    folder = save(tmp_path / "a", slices())
    report = header(SR, "1.2.9", "SR", "1.2.9.1")
    save(folder, [report], prefix="report")
    mask = header(SEG, "1.2.8", "SEG", "1.2.8.1")
    set_pixels(mask, np.ones((9, 11), np.uint8))
    save(folder, [mask], prefix="seg")
    (folder / ".nomedia").touch()
    (folder / "Thumbs.db").write_bytes(b"x" * 200)
    (folder / "notes.txt").touch()
    (folder / "more").mkdir()
    values, (notice,), _ = read(folder)
    np.testing.assert_array_equal(values, VALUES)
    assert notice == "files without an image are left aside: 1 SEG, 1 SR"
    alone = save(tmp_path / "report", [report])
    refused(alone, "expected the files of one DICOM series, got SR without an image")


def test_damaged_files_are_named(tmp_path):
    for kept in (0, 100, 138, 150, 200, 400, -3, -60):
        folder = save(tmp_path / f"cut{kept}", slices())
        last = max(folder.iterdir())
        last.write_bytes(last.read_bytes()[:kept])
        refused(folder, f"expected whole files of one series, got {last.name}")


def test_a_file_that_is_deflated_as_a_whole_is_refused(tmp_path):
    """A few hundred bytes may unpack to whatever; in a series, too."""
    parts = slices()
    save(tmp_path / "in", parts)
    file = sorted((tmp_path / "in").iterdir())[1]
    part = pydicom.dcmread(file)
    part.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    part.add_new(0x00091010, "OB", bytes(10**7))
    part.save_as(file)
    assert file.stat().st_size < 10**5
    refused(tmp_path / "in", f"{file.name}: deflated as a whole")
    refused(file, f"{file.name}: deflated as a whole")


@pytest.mark.parametrize("names", ["1.2.840.{}", "IM{}", "im{}.DCM", "im{}.dcm"])
@pytest.mark.parametrize("damage", ["empty", "cut", "pointer", "link"])
def test_a_slice_at_an_end_is_not_dropped_in_silence(tmp_path, names, damage):
    """The others lie at equal distances, so nothing else tells."""
    folder = tmp_path / "a"
    folder.mkdir()
    for i, part in enumerate(slices()):
        part.save_as(folder / names.format(i), enforce_file_format=True)
    last = folder / names.format(5)
    content = {"empty": b"", "cut": last.read_bytes()[:50], "pointer": b"version https://git-lfs"}
    if damage == "link":
        last.unlink()
        last.symlink_to(tmp_path / "nowhere")
    else:
        last.write_bytes(content[damage])
    refused(folder, f"expected whole files of one series, got {last.name}")


def test_slices_that_a_program_has_not_finished_are_not_dropped(tmp_path):
    for ending in (".gz", ".part"):
        folder = save(tmp_path / ending[1:], slices())
        last = max(folder.iterdir())
        last.write_bytes(last.read_bytes()[:60])
        last.rename(folder / f"{last.name}{ending}")
        refused(folder, f"got {last.name}{ending}, which does not begin as DICOM")


def test_files_of_several_patients_or_phases_are_no_volume(tmp_path):
    parts = slices()
    for i, part in enumerate(parts):
        part.SeriesInstanceUID, part.PatientID = f"1.2.3.{i}", f"patient {i // 3}"
    refused(save(tmp_path / "patients", parts), "expected files of one PatientID, got patient 0")
    for part in parts:
        part.SeriesInstanceUID = "1.2.3"
    refused(save(tmp_path / "mixed", parts), "expected files of one PatientID, got patient 0")
    parts = slices()
    for i, part in enumerate(parts):
        part.TemporalPositionIdentifier = i % 2
    refused(save(tmp_path / "phases", parts), "expected files of one TemporalPositionIdentifier")


def test_a_file_of_a_class_without_images_is_left_aside_whatever_else_it_says(tmp_path):
    folder = save(tmp_path / "a", slices())
    state = header("1.2.840.10008.5.1.4.1.1.11.1", "1.2.3", "PR", "1.2.3.99")
    raw = header("1.2.840.10008.5.1.4.1.1.66", "1.2.7", "CT", "1.2.7.1")
    save(folder, [state], prefix="state")
    save(folder, [raw], prefix="raw")
    values, (notice,), _ = read(folder)
    np.testing.assert_array_equal(values, VALUES)
    assert notice == "files without an image are left aside: 1 CT, 1 PR"


def test_values_of_a_file_without_a_syntax_are_of_its_own_order(tmp_path):
    folder = tmp_path / "big"
    folder.mkdir()
    for i, part in enumerate(slices(VALUES.astype(">i2"))):
        part.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        part.save_as(folder / f"{i}.dcm", enforce_file_format=True)
        content = (folder / f"{i}.dcm").read_bytes()
        syntax = b"\x02\x00\x10\x00UI\x14\x00" + b"1.2.840.10008.1.2.2\x00"
        assert syntax in content
        (folder / f"{i}.dcm").write_bytes(content.replace(syntax, b""))
    values, *_ = read(folder)
    np.testing.assert_array_equal(values, VALUES)


def test_a_slice_alone_is_as_thick_as_it_says(tmp_path):
    (part,) = slices(VALUES[:1])
    *_, image = read(save(tmp_path / "one", [part]))
    assert image.GetSpacing() == (0.8, 0.9, 2.5)
    part["SliceThickness"] = pydicom.DataElement("SliceThickness", "LO", "thick")
    refused(save(tmp_path / "text", [part]), "expected 1 numbers as SliceThickness, got 'thick'")
    del part["SliceThickness"]
    refused(save(tmp_path / "none", [part]), "expected several slices, or a Slice Thickness")


def test_files_without_a_preamble_are_read(tmp_path):
    folder = save(tmp_path / "bare", slices(), ending="")
    for path in folder.iterdir():
        part = pydicom.dcmread(path)
        del part.file_meta
        part.preamble = None
        content = io.BytesIO()
        pydicom.dcmwrite(
            content, part, implicit_vr=True, little_endian=True, enforce_file_format=False
        )
        path.write_bytes(content.getvalue())
    values, *_ = read(folder)
    np.testing.assert_array_equal(values, VALUES)


# Files of several frames


def item(**values) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def enhanced(order=range(SHAPE[0])) -> Dataset:
    made = header(ENHANCED)
    made.NumberOfFrames = SHAPE[0]
    measures = item(PixelSpacing=list(SPACING[1:]), SliceThickness=SPACING[0])
    made.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[measures],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        )
    ]
    made.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[
                item(ImagePositionPatient=[*ORIGIN[:2], ORIGIN[2] + SPACING[0] * i])
            ],
            PixelValueTransformationSequence=[item(RescaleSlope=1 + i, RescaleIntercept=-i)],
        )
        for i in order
    ]
    set_pixels(made, VALUES[list(order)])
    return made


def test_frames_that_say_where_they_lie_are_a_volume(tmp_path):
    expected = VALUES * np.arange(1.0, 7)[:, None, None] - np.arange(6)[:, None, None]
    for name, order in (("up", range(6)), ("mixed", (3, 0, 5, 1, 2, 4))):
        folder = save(tmp_path / name, [enhanced(order)])
        for path in (folder, folder / "im000.dcm"):
            values, notices, image = read(path)
            np.testing.assert_array_equal(values, expected)
            np.testing.assert_allclose(image.GetSpacing(), SPACING[::-1])
            assert image.GetOrigin() == ORIGIN and not notices


def test_compressed_frames_whose_rescaling_gdcm_does_not_know_are_refused(tmp_path):
    made = enhanced()
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7.3"
    for item_ in made.PerFrameFunctionalGroupsSequence:
        item_.PixelValueTransformationSequence[0].RescaleSlope = 2
        item_.PixelValueTransformationSequence[0].RescaleIntercept = -1024
    values, *_ = read(save(tmp_path / "plain", [made]))
    np.testing.assert_array_equal(values, 2.0 * VALUES - 1024)
    made.file_meta.TransferSyntaxUID = JPEG2000Lossless
    made.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f" + bytes(60)] * SHAPE[0])
    made["PixelData"].VR = "OB"
    refused(save(tmp_path / "packed", [made]), "compressed frames without a slope and intercept")


def test_frames_that_do_not_are_refused_by_name(tmp_path):
    made = enhanced()
    del made.PerFrameFunctionalGroupsSequence
    refused(save(tmp_path / "plain", [made]), "im000.dcm has 6 frames that do not: convert it")
    made = enhanced()
    del made.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    refused(save(tmp_path / "one", [made]), r"expected Image Position \(Patient\) in each slice")
    folder = save(tmp_path / "slices", slices())
    refused(folder / "im000.dcm", "expected the folder of its series, got one slice")
