"""Preparing training cases: scipy's grid, the files, and the cases that can't be used."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.ndimage import zoom

from data import resample_preprocess_for_CVPR_3DFM as script
from utils.formats.case import read_volumes
from utils.formats.npz import CaseError
from utils.formats.prepared import map_volumes, read_prepared
from utils.formats.resample import zoom_linear, zoom_nearest, zoomed_shape

SHAPE = (9, 25, 31)
SPACING = (5.0, 0.8, 1.1)  # (z, y, x)


def volumes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, SHAPE, np.uint8)
    gts = np.zeros(SHAPE, np.uint8)
    gts[2:6, 3:20, 5:25], gts[7:, 20:, 28:], gts[0, 0, 0] = 3, 7, 200
    return image, gts


def write_raw(path, **changes):
    image, gts = volumes()
    arrays = {"imgs": image, "gts": gts, "spacing": np.array(SPACING[::-1])} | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the script without processes of its own -> (status, stdout, stderr)."""
    monkeypatch.setattr(script, "ProcessPoolExecutor", lambda n, *_, **how: ThreadPoolExecutor(n))

    def call(source, target, *options: str) -> tuple[int, str, str]:
        args = ["--input", str(source), "--output", str(target), "--workers", "1", *options]
        return script.main(script.get_args_parser().parse_args(args)), *capsys.readouterr()

    return call


@pytest.mark.parametrize("target", [1.5, 0.7, 4.0])
def test_volumes_equal_those_of_scipy_zoom(target):
    image, gts = volumes()
    factors = [s / target for s in SPACING]
    shape = zoomed_shape(SHAPE, SPACING, target)
    expected = zoom(image, factors, order=1)
    assert shape == expected.shape
    difference = np.abs(zoom_linear(image, shape).astype(int) - expected)
    assert difference.max() <= 1 and np.mean(difference > 0) < 0.02  # halves round either way
    np.testing.assert_array_equal(zoom_nearest(gts, shape), zoom(gts, factors, order=0))


def test_half_way_between_two_voxels_the_upper_one_gives_the_label():
    gts = np.random.default_rng(0).integers(0, 5, SHAPE, np.uint8)
    shape = tuple(2 * n - 1 for n in SHAPE)
    factors = [m / n for m, n in zip(shape, SHAPE, strict=True)]
    np.testing.assert_array_equal(zoom_nearest(gts, shape), zoom(gts, factors, order=0))


def test_an_axis_of_one_voxel_is_kept_or_repeated():
    image = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    np.testing.assert_array_equal(zoom_linear(image, (1, 3, 4)), image)
    np.testing.assert_array_equal(zoom_linear(image, (2, 3, 1)), image.repeat(2, 0)[:, :, :1])
    np.testing.assert_array_equal(zoom_nearest(image, (2, 3, 1)), image.repeat(2, 0)[:, :, :1])


def test_float_images_become_the_nearest_grey_levels():
    image = np.random.default_rng(1).random(SHAPE, np.float32) * 255
    zoomed = zoom_linear(image, (12, 13, 40))
    expected = zoom(image, [m / n for m, n in zip((12, 13, 40), SHAPE, strict=True)], order=1)
    assert zoomed.dtype == np.uint8 and np.abs(zoomed - expected).max() <= 0.501


def test_a_prepared_case_holds_what_training_reads(tmp_path):
    write_raw(tmp_path / "raw/CT/CT_Some/CT_Some_1.npz")
    result = subprocess.run(
        [sys.executable, script.__file__, "--input", "raw", "--output", "out", "--workers", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "1 cases: 0 are there, 0 can't be used, 1 to do" in result.stdout
    path = tmp_path / "out/CT/CT_Some/CT_Some_1.npz"
    case = read_prepared(path)
    image, gts = map_volumes(path)
    factors = [s / 1.5 for s in SPACING]
    expected = zoom(volumes()[1], factors, order=0)
    np.testing.assert_array_equal(gts, expected)
    assert np.abs(image.astype(int) - zoom(volumes()[0], factors, order=1)).max() <= 1
    assert case.shape == expected.shape == image.shape
    assert case.labels.tolist() == [3, 7, 200]
    for label, box, count in zip(case.labels, case.label_boxes, case.label_counts, strict=True):
        inside = np.argwhere(expected == label)
        assert count == len(inside)
        np.testing.assert_array_equal(box, np.stack([inside.min(0), inside.max(0) + 1], axis=1))


def test_a_prepared_case_is_a_case_again_with_its_new_spacing(run, tmp_path):
    write_raw(tmp_path / "raw/case.npz")
    assert run(tmp_path / "raw", tmp_path / "out")[0] == 0
    image, _, spacing = read_volumes(tmp_path / "out/case.npz")
    extent = [s * (n - 1) for s, n in zip(spacing, image.shape, strict=True)]
    assert extent == pytest.approx([s * (n - 1) for s, n in zip(SPACING, SHAPE, strict=True)])


def test_instance_labels_beyond_a_byte_are_kept(run, tmp_path):
    gts = volumes()[1].astype(np.int64) * 1000
    write_raw(tmp_path / "raw/case.npz", gts=gts)
    assert run(tmp_path / "raw", tmp_path / "out")[0] == 0
    case = read_prepared(tmp_path / "out/case.npz")
    assert case.labels.tolist() == [3000, 7000, 200_000]
    assert map_volumes(case.path)[1].dtype == np.uint32


def test_a_native_case_is_what_it_was(run, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    image, gts = map(np.asfortranarray, volumes())
    write_raw(raw / "a.npz", imgs=image, gts=gts)
    assert run(raw, out, "--native")[0] == 0
    case, (image, gts) = read_prepared(out / "a.npz"), map_volumes(out / "a.npz")
    for kept, original in zip((image, gts), volumes(), strict=True):
        np.testing.assert_array_equal(kept, original)
    assert case.is_native and case.spacing == SPACING
    assert run(raw, out)[0] == 0  # prepared anew, for the other recipe
    assert not read_prepared(out / "a.npz").is_native


def test_bad_cases_are_listed_and_the_others_go_on(run, tmp_path):
    raw = tmp_path / "raw"
    for i in range(3):
        write_raw(raw / f"good_{i}.npz")
    write_raw(raw / "no_gts.npz", gts=None)
    write_raw(raw / "no_labels.npz", gts=np.zeros(SHAPE, np.uint8))
    write_raw(raw / "flat.npz", spacing=np.array([0.001, 1, 1]))
    write_raw(raw / "metres.npz", spacing=np.array([1000.0, 1000, 1000]))
    write_raw(raw / "huge.npz", spacing=np.array([1e308, 1, 1]))
    write_raw(raw / "dark.npz", imgs=np.zeros(SHAPE, np.uint8))
    (raw / "broken.npz").write_bytes((raw / "good_0.npz").read_bytes()[:-200])
    assert run(raw, tmp_path / "out")[0] == 1
    lines = (tmp_path / "out/failed.tsv").read_text().splitlines()
    reasons = dict(line.split("\t") for line in lines)
    assert {name: reasons[name] for name in sorted(reasons)} == reasons
    expected = {
        "broken.npz": "whole .npz",
        "dark.npz": "a voxel above 0",
        "flat.npz": "at least half a voxel",
        "huge.npz": "expected a spacing in mm",
        "metres.npz": "voxels of 1.5 mm, got",
        "no_gts.npz": "expected gts, got none",
        "no_labels.npz": "expected labels in the resampled gts, got none",
    }
    assert reasons.keys() == expected.keys()
    assert all(text in reasons[name] for name, text in expected.items())
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["failed.tsv", "good_0.npz", "good_1.npz", "good_2.npz"]


def test_a_second_run_makes_only_what_is_missing_or_changed(run, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for name in ("kept", "changed", "cut"):
        write_raw(raw / f"{name}.npz")
    run(raw, out)
    written = (out / "kept.npz").stat().st_mtime_ns
    write_raw(raw / "changed.npz", spacing=np.array([2.0, 2.0, 2.0]))
    content = (out / "cut.npz").read_bytes()
    (out / "cut.npz").write_bytes(content[:100])
    assert "3 cases: 1 are there, 0 can't be used, 2 to do" in run(raw, out)[1]
    assert (out / "kept.npz").stat().st_mtime_ns == written
    assert (out / "cut.npz").read_bytes() == content
    assert read_prepared(out / "changed.npz").shape == zoomed_shape(SHAPE, (2.0,) * 3, 1.5)
    note = "3 to do (3 in place of ones made of other files or options)"
    assert note in run(raw, out, "--spacing", "2")[1]


def test_compressed_or_foreign_files_are_refused_with_what_to_do(run, tmp_path):
    write_raw(tmp_path / "raw.npz")
    with pytest.raises(CaseError, match="raw.npz: expected a case made by data/resample"):
        read_prepared(tmp_path / "raw.npz")
    run(tmp_path, tmp_path.parent / f"{tmp_path.name}_out")
    with np.load(tmp_path.parent / f"{tmp_path.name}_out/raw.npz") as file:
        np.savez_compressed(tmp_path / "packed.npz", **file)
    with pytest.raises(CaseError, match="packed.npz: imgs: expected it stored, to be mapped"):
        read_prepared(tmp_path / "packed.npz")


def test_outputs_inside_the_inputs_are_refused(run, tmp_path):
    write_raw(tmp_path / "case.npz")
    status, _, err = run(tmp_path, tmp_path / "out")
    assert status == 2 and "outside of --input" in err
