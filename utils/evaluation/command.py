"""A program as the method: it turns inputs/ into outputs/, as the challenge calls a container."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from utils.evaluation.protocol import RoundInput, RoundOutput, RoundPredictor
from utils.formats.case import read_contents, read_segs, write_round
from utils.formats.npz import CaseError

GRACE_SECONDS = 10  # from SIGTERM, which docker passes on to its container, to SIGKILL


@contextmanager
def command_predictor(command: str, path: Path, log: Path) -> Iterator[RoundPredictor]:
    """A predictor that runs a shell command once a round.

    The command runs in a scratch folder that shows the entries of the current one, but has
    inputs/ and outputs/ of its own. inputs/ holds one file of the case's name: first a copy of
    it, then what the official evaluator writes. What counts is the file that the command leaves
    in outputs/, as officially; its exit status does not. outputs/ is emptied before each round.

    Args:
        command: Shell command.
        path: File of the case.
        log: File that what the command prints is added to.

    Yields:
        The predictor, until the scratch folder is removed.
    """
    contents = read_contents(path)
    with tempfile.TemporaryDirectory(prefix="evaluate-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        inputs, outputs = scratch / "inputs", scratch / "outputs"
        for entry in Path.cwd().iterdir():
            if entry.name not in ("inputs", "outputs"):
                (scratch / entry.name).symlink_to(entry)
        scratch.chmod(0o755)
        inputs.mkdir()
        shutil.copyfile(path, inputs / path.name)

        def predict_round(given: RoundInput) -> RoundOutput:
            if given.click_rounds:
                assert given.case.prev_pred is not None
                prev_pred = given.case.prev_pred
                write_round(inputs / path.name, contents, given.click_rounds, prev_pred)
            shutil.rmtree(outputs, ignore_errors=True)
            outputs.mkdir(exist_ok=True)
            outputs.chmod(0o777)  # a container may run as another user
            start = time.perf_counter()
            with open(log, "ab") as file:
                status = _run(command, scratch, file, given.seconds)
            seconds = time.perf_counter() - start
            if status is None:
                return RoundOutput(None, seconds, f"late: stopped after {seconds:.0f} s")
            output = outputs / path.name
            if not output.is_file():
                failure = f"no outputs/{path.name}, exit status {status}; see {log}"
                return RoundOutput(None, seconds, failure)
            try:
                return RoundOutput(read_segs(output, given.case.shape), seconds)
            except (CaseError, OSError) as error:
                return RoundOutput(None, seconds, str(error))

        yield predict_round


def _run(command: str, folder: Path, log: BinaryIO, seconds: float) -> int | None:
    """Run a shell command -> exit status, or None if it was stopped after so many seconds.

    Nothing that it has started is left running.
    """
    process = subprocess.Popen(
        command,
        shell=True,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _stop(process)


def _stop(process: subprocess.Popen) -> None:
    """End a process and all that it has started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(GRACE_SECONDS)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
