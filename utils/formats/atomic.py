"""Writing files so that a reader sees the old one, the new one, or none, never a part."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_path(path: Path, ending: str = "") -> Iterator[Path]:
    """A path beside `path` to write to, that replaces it when the block ends without an error.

    The content is on the disk before the name is. An error removes what was written and leaves
    `path` as it was.

    Args:
        path: The file to be.
        ending: End of the temporary name, where the writer tells the format by it.

    Raises:
        OSError: It can't be written, as on a full disk; the message names `path`.
    """
    temporary = _beside(path, ending)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """An open file that becomes `path` when the block ends without an error, by `atomic_path`."""
    with atomic_path(path) as temporary, open(temporary, "xb") as file:
        yield file


def atomic_copy(source: Path, target: Path) -> None:
    """Make `target` hold what `source` holds now; takes no space where the disk has hard links."""
    temporary = _beside(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path, ending: str = "") -> Path:
    """A new name in the same folder; file systems allow it 255 bytes."""
    return path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.tmp{ending}")
