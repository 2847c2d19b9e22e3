"""A folder that one process at a time may write to."""

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "lock"  # of the file that is locked; it stays, and says who held it last


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Hold a folder while the block runs; the system lets go of it when the process ends.

    Other nodes see it where their file system shares locks, whatever their clocks say.

    Args:
        folder: It is there.
        option: What names another one, for the message.

    Raises:
        ValueError: Another process holds it.
    """
    with open(folder / NAME, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(
                f"{folder}: {holder} writes to it: wait for its end, or give another {option}"
            ) from None
        except OSError as error:
            print(f"{folder}: can't be locked ({error.strerror})", file=sys.stderr, flush=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
