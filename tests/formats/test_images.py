"""NIfTI pairs -> challenge cases: orientation, grey levels, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from data.nifti_to_npz import get_args_parser, main
from utils.formats.case import read_labelled_case
from utils.formats.intensity import CT_WINDOWS, scale_percentiles, scale_window

SIZE = (9, 11, 13)  # (z, y, x)
SPACING = (3.0, 0.5, 1.0)


def volumes() -> tuple[np.ndarray, np.ndarray]:
    """In LPS: HU that grow to the left, back and head; two objects."""
    z, y, x = np.indices(SIZE)
    hounsfield = (-200 + 20 * z + 10 * y + 5 * x).astype(np.int16)
    seg = np.zeros(SIZE, np.uint8)
    seg[2:5, 3:8, 1:6], seg[7:, 9:, 10:] = 1, 4
    return hounsfield, seg


def write(path: Path, array: np.ndarray, orientation: str, **changes) -> None:
    """Write an LPS (z, y, x) array, stored in another orientation."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(changes.get("spacing", SPACING)[::-1])
    image.SetOrigin(changes.get("origin", (-20.0, 7.0, 100.0)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path))


def write_pair(folder: Path, name: str, orientation: str = "LPS", labels: str | None = None):
    image, seg = volumes()
    write(folder / f"imagesTr/{name}_0000.nii.gz", image, orientation)
    write(folder / f"labelsTr/{name}.nii.gz", seg, labels or orientation)


def run(folder: Path, *options: str) -> int:
    own = ["--input", str(folder), "--output", str(folder / "out"), "--dataset", "Some"]
    return main(get_args_parser().parse_args([*own, "--modality", "CT", *options]))


@pytest.mark.parametrize(
    ("orientation", "labels"), [("LPS", None), ("RAS", None), ("SAR", None), ("PIR", "LAS")]
)
def test_any_orientation_becomes_lps(tmp_path, orientation, labels):
    write_pair(tmp_path, "a.1", orientation, labels)
    assert run(tmp_path) == 0
    labelled = read_labelled_case(tmp_path / "out/CT/CT_Some/CT_Some_a.1.npz")
    image, seg = volumes()
    np.testing.assert_array_equal(labelled.case.image, scale_window(image, 40, 400))
    np.testing.assert_array_equal(labelled.truth == 2, seg == 4)
    assert labelled.case.spacing == pytest.approx(SPACING) and labelled.labels == (1, 4)
    box = labelled.case.objects[0].box
    assert (box.start[0], box.stop[0]) == (2, 5)
    assert box.start[1] <= 3 and 8 <= box.stop[1] and box.start[2] <= 1 and 6 <= box.stop[2]


def test_an_oblique_image_keeps_its_axes(tmp_path):
    turn = sitk.Euler3DTransform((0, 0, 0), 0.2, 0.1, 0.3).GetMatrix()
    for path, array in zip(("imagesTr/a_0000.nrrd", "labelsTr/a.nrrd"), volumes(), strict=True):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(SPACING[::-1])
        image.SetDirection(turn)
        (tmp_path / path).parent.mkdir()
        sitk.WriteImage(image, str(tmp_path / path))
    assert run(tmp_path) == 0
    labelled = read_labelled_case(tmp_path / "out/CT/CT_Some/CT_Some_a.npz")
    np.testing.assert_array_equal(labelled.truth == 1, volumes()[1] == 1)
    assert labelled.case.spacing == pytest.approx(SPACING)


def test_windows_and_percentiles_are_those_of_the_challenge(tmp_path):
    values = np.array([-1000.0, -160, 40, 240, 3000])
    assert scale_window(values, *CT_WINDOWS["abdomen"]).tolist() == [0, 0, 128, 255, 255]
    image = np.arange(-100, 1001).astype(np.float32)
    low, high = np.percentile(np.arange(1, 1001), (0.5, 99.5))
    scaled = scale_percentiles(image)
    assert scaled[image <= low].max() == 0 and scaled[image >= high].min() == 255
    assert scaled[600] == round(255 * (500 - low) / (high - low))
    write_pair(tmp_path, "a")
    assert run(tmp_path, "--modality", "MR") == 0
    assert (tmp_path / "out/MR/MR_Some/MR_Some_a.npz").is_file()


def test_bad_pairs_are_named_and_the_others_go_on(tmp_path, capsys):
    write_pair(tmp_path, "good")
    write_pair(tmp_path, "shifted")
    image, seg = volumes()
    write(tmp_path / "labelsTr/shifted.nii.gz", seg, "LPS", origin=(0.0, 0.0, 0.0))
    write_pair(tmp_path, "empty")
    write(tmp_path / "labelsTr/empty.nii.gz", 0 * seg, "LPS")
    write_pair(tmp_path, "halves")
    write(tmp_path / "labelsTr/halves.nii.gz", seg / np.float32(2), "LPS")
    write(tmp_path / "labelsTr/alone.nii.gz", seg, "LPS")
    (tmp_path / "labelsTr/.DS_Store").write_bytes(b"")
    assert run(tmp_path) == 1
    assert [path.name for path in (tmp_path / "out/CT/CT_Some").iterdir()] == ["CT_Some_good.npz"]
    lines = capsys.readouterr()
    assert "1 cases in" in lines.out and "4 failed" in lines.out
    for name, reason in (
        ("alone", "alone_0000.nii.gz: expected an image, there is no such file"),
        ("empty", "empty.nii.gz: expected labels, got none"),
        ("halves", "halves.nii.gz: expected whole numbers as labels"),
        ("shifted", "shifted.nii.gz: expected the grid of shifted_0000.nii.gz, size 13, 11, 9"),
    ):
        assert f"FAILED {name}: {reason}" in lines.err


def test_a_channel_can_be_chosen(tmp_path):
    write_pair(tmp_path, "a")
    write(tmp_path / "imagesTr/a_0001.nii.gz", volumes()[0] // 2 + 200, "LPS")
    assert run(tmp_path, "--channel", "1") == 0
    labelled = read_labelled_case(tmp_path / "out/CT/CT_Some/CT_Some_a.npz")
    np.testing.assert_array_equal(
        labelled.case.image, scale_window(volumes()[0] // 2 + 200, *CT_WINDOWS["abdomen"])
    )


def test_a_modality_that_is_not_known_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "--modality", "ct")
    assert "choose from" in capsys.readouterr().err
