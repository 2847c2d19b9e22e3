"""Files appear whole or not at all, and an error names the file that was to be."""

import errno
import os
from pathlib import Path

import pytest

from utils.formats.atomic import atomic_path, atomic_write


def fail_to_write(path: Path, error: Exception) -> Exception:
    """What comes out of a block that writes a part and fails."""
    with pytest.raises(type(error)) as info, atomic_write(path) as file:
        file.write(b"a part")
        raise error
    return info.value


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_without_a_file_gets_the_name_of_the_file_to_be(code, tmp_path):
    path = tmp_path / "case.npz"
    error = fail_to_write(path, OSError(code, os.strerror(code)))
    assert str(error) == f"[Errno {code}] {os.strerror(code)}: '{path}'"
    assert not os.listdir(tmp_path)


def test_the_temporary_name_is_not_told(tmp_path):
    path = tmp_path / "missing" / "case.npz"
    with pytest.raises(FileNotFoundError) as info, atomic_write(path):
        pass
    assert info.value.filename == str(path) and info.value.filename2 is None
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as info, atomic_write(tmp_path / "folder") as file:
        file.write(b"whole")  # but can't take the name
    assert info.value.filename == str(tmp_path / "folder") and os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file", "other"), OSError("no ink"), KeyError("x")]
)
def test_other_errors_stay_as_they_are(error, tmp_path):
    assert fail_to_write(tmp_path / "case.npz", error) is error
    assert not os.listdir(tmp_path)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "labels.nii.gz"
    path.write_text("old")
    with atomic_path(path, ".nii.gz") as temporary:
        assert temporary.parent == tmp_path and temporary.name.endswith(".nii.gz")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == [path.name]
