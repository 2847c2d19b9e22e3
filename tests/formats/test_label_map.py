"""Label maps: read, thinned, named; what is wrong with them is said."""

import json

import numpy as np
import pytest

from utils.formats.label_map import find_label_maps, read_label_map
from utils.formats.npz import CaseError

GTS = np.arange(6 * 8 * 10).reshape(6, 8, 10) % 7


def write(path, gts=GTS, spacing=(1.0, 1.0, 1.0), **more):
    np.savez_compressed(path, gts=gts, spacing=np.array(spacing), **more)
    return path


def test_a_label_map_is_read(tmp_path):
    path = write(tmp_path / "a.npz", names=np.array(json.dumps({"1": "Liver", "2": "aorta"})))
    found = read_label_map(path)
    np.testing.assert_array_equal(found.gts, GTS)
    assert found.names == {1: "liver", 2: "aorta"}
    assert read_label_map(write(tmp_path / "b.npz")).names == {}


def test_labels_that_are_stored_as_they_are_stay_on_the_disk(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, gts=GTS.astype(np.uint8), spacing=np.ones(3))
    found = read_label_map(path)
    assert isinstance(found.gts, np.memmap)
    np.testing.assert_array_equal(found.gts, GTS)


def test_fine_axes_are_thinned(tmp_path):
    path = write(tmp_path / "a.npz", spacing=(0.28, 0.5, 1.0))  # (x, y, z)
    np.testing.assert_array_equal(read_label_map(path).gts, GTS[:, ::2, ::4])


@pytest.mark.parametrize("names", ["[1, 2]", '{"a": 1}', "no JSON", ""])
def test_names_that_are_none_are_refused(names, tmp_path):
    with pytest.raises(CaseError, match="a.npz: names: expected JSON"):
        read_label_map(write(tmp_path / "a.npz", names=np.array(names)))


@pytest.mark.parametrize("names", [np.array(["a", "b"]), np.array({1: "a"}), np.array(3)])
def test_names_that_are_no_string_are_refused(names, tmp_path):
    with pytest.raises(CaseError, match="a.npz: names: expected a string"):
        read_label_map(write(tmp_path / "a.npz", names=names))


def test_voxels_too_oblong_and_folders_without_maps_are_refused(tmp_path):
    with pytest.raises(CaseError, match="a.npz: expected sides of voxels up to 1 : 100"):
        read_label_map(write(tmp_path / "a.npz", spacing=(5e-324, 1.0, 1.0)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaseError, match="expected label maps, got none in .*empty"):
        find_label_maps([tmp_path / "empty"])
    assert find_label_maps([]) == []


def test_files_and_folders_are_found_as_often_as_they_are_given(tmp_path):
    folder = tmp_path / "maps" / "deep"
    folder.mkdir(parents=True)
    a, b = write(folder / "a.npz"), write(tmp_path / "b.npz")
    assert find_label_maps([tmp_path / "maps", b, b]) == [a, b, b]
    with pytest.raises(FileNotFoundError):
        find_label_maps([tmp_path / "none.npz"])
    write(folder / "c.npz", gts=GTS.astype(float))
    with pytest.raises(CaseError, match="c.npz: gts must be 3D integers"):
        find_label_maps([tmp_path / "maps"])
