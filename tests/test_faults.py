"""Killed, stopped, out of disk, twice at once, among bad files: nothing is lost or half written."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import infer
from conftest import ROOT, SHAPE, case_arrays
from scans import written
from utils.formats.case import write_case

KILLS = 50
# Writes one file after another in a child, which is killed at any moment.
WRITE_AND_KILL = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from utils.formats.case import write_case
segs = np.random.default_rng(0).integers(0, 256, (20, 128, 128), np.uint8)
moments = random.Random(0)
for i in range(int(sys.argv[2])):
    child = os.fork()
    while child == 0:
        write_case(Path(sys.argv[1]) / f"{i}.npz", segs)
    time.sleep(moments.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def cases(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        image = np.random.default_rng(i).integers(1, 256, SHAPE, np.uint8)
        np.savez_compressed(folder / f"{i:03d}.npz", **case_arrays(imgs=image))
    return folder


def arguments(inputs: Path, outputs: Path, checkpoint: Path, *options: str) -> list[str]:
    own = ["--inputs", inputs, "--outputs", outputs, "--checkpoint", checkpoint, "--device=cpu"]
    return [*map(str, own), *options]


def run(*args) -> int:
    """The status of infer.py in this process."""
    return infer.main(infer.get_args_parser().parse_args(arguments(*args)))


def start(*args, **how) -> subprocess.Popen:
    """infer.py as a process of its own."""
    command = [sys.executable, str(ROOT / "infer.py"), *arguments(*args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )


def segs_in(folder: Path) -> dict[str, np.ndarray]:
    """The labels in all visible files; reading one that is not whole fails."""
    found = {}
    for path in folder.glob("[!.]*"):
        with np.load(path) as file:
            found[path.name] = file["segs"]
    return found


def check_same_segs(folder: Path, expected: Path) -> None:
    found, wanted = segs_in(folder), segs_in(expected)
    assert found.keys() == wanted.keys()
    assert all((found[name] == wanted[name]).all() for name in wanted)


def wait_for_outputs(folder: Path, count: int, process: subprocess.Popen) -> None:
    while len(list(folder.glob("[!.]*"))) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)


def test_a_kill_at_any_moment_leaves_an_output_whole_or_absent(tmp_path):
    command = [sys.executable, "-c", WRITE_AND_KILL, str(tmp_path), str(KILLS)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert list(tmp_path.glob(".*"))  # some were killed while they wrote
    found = segs_in(tmp_path)
    assert 0 < len(found) <= KILLS
    expected = np.random.default_rng(0).integers(0, 256, (20, 128, 128), np.uint8)
    for segs in found.values():
        np.testing.assert_array_equal(segs, expected)


def test_a_rerun_finishes_what_a_kill_has_left(tmp_path, tiny_checkpoint):
    inputs, outputs = cases(tmp_path / "inputs", 8), tmp_path / "outputs"
    assert run(inputs, tmp_path / "whole", tiny_checkpoint) == 0
    process = start(inputs, outputs, tiny_checkpoint)
    outputs.mkdir(exist_ok=True)
    wait_for_outputs(outputs, 2, process)
    process.kill()
    process.wait()
    assert 2 <= len(segs_in(outputs)) < 8
    assert run(inputs, outputs, tiny_checkpoint) == 0
    check_same_segs(outputs, tmp_path / "whole")


def test_sigterm_leaves_no_part_and_tells_by_its_status(tmp_path, tiny_checkpoint):
    inputs, outputs = cases(tmp_path / "inputs", 200), tmp_path / "outputs"
    outputs.mkdir()
    process = start(inputs, outputs, tiny_checkpoint)
    wait_for_outputs(outputs, 2, process)
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert 2 <= len(segs_in(outputs)) < 200
    assert not list(outputs.glob(".*"))


def test_two_runs_on_the_same_folders(tmp_path, tiny_checkpoint):
    inputs = cases(tmp_path / "inputs", 6)
    assert run(inputs, tmp_path / "whole", tiny_checkpoint) == 0
    both = [start(inputs, tmp_path / "outputs", tiny_checkpoint) for _ in range(2)]
    for process in both:
        assert process.wait() == 0, process.stderr.read()
    check_same_segs(tmp_path / "outputs", tmp_path / "whole")
    assert not list((tmp_path / "outputs").glob(".*"))


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """As on a full disk, no file of this process may grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("case.npz", "[Errno 27] File too large: '{}'"),
        ("scan.nii.gz", "{}: can't be written"),
        ("scan.nrrd", "{}: can't be written"),
        ("scan.nii", "{}: can't be written"),
    ],
)
def test_a_full_disk_fails_the_case_and_leaves_nothing(
    name, reason, tmp_path, tiny_checkpoint, capsys
):
    options = []
    if name == "case.npz":
        np.savez_compressed(tmp_path / name, **case_arrays())
    else:
        written(tmp_path / name)
        options = ["--click=3,4,15,1"]
    with limited_files(64):
        status = run(tmp_path / name, tmp_path / "outputs", tiny_checkpoint, *options)
    failed, summary = capsys.readouterr().err.splitlines()  # a line, without a traceback
    assert status == 1 and summary == f"1 of 1 cases failed: {name}"
    assert failed.startswith(f"FAILED {name}: {reason.format(tmp_path / 'outputs' / name)}")
    assert not list((tmp_path / "outputs").iterdir())


def test_outputs_on_a_read_only_mount(tmp_path, tiny_checkpoint):
    inputs, outputs = cases(tmp_path / "inputs", 1), tmp_path / "outputs"
    outputs.mkdir()
    mount = f"mount -t tmpfs -o ro tmpfs {outputs}"
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*unshare, mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount, in a namespace of its own")
    command = f'{mount} && exec "{sys.executable}" "{ROOT}/infer.py" --inputs "{inputs}" '
    command += f'--outputs "{outputs}" --checkpoint "{tiny_checkpoint}"'
    result = subprocess.run([*unshare, command], capture_output=True, text=True)
    assert result.returncode == 2
    assert "can't be written: [Errno 30] Read-only file system" in result.stderr


def test_a_corrupt_file_among_a_hundred(tmp_path, tiny_checkpoint, capsys):
    inputs, outputs = cases(tmp_path / "inputs", 100), tmp_path / "outputs"
    broken = inputs / "050.npz"
    broken.write_bytes(broken.read_bytes()[:-100])
    assert run(inputs, outputs, tiny_checkpoint) == 1 and len(segs_in(outputs)) == 99
    assert capsys.readouterr().err.splitlines() == [
        "FAILED 050.npz: expected a whole .npz (zip) file, got: File is not a zip file",
        "1 of 100 cases failed: 050.npz",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_without_a_home_segments(tmp_path, tiny_checkpoint):
    """As `docker run --user 1000`: nothing but the folder of outputs is written to."""
    inputs, outputs = cases(tmp_path / "inputs", 1), tmp_path / "outputs"
    outputs.mkdir()
    os.chown(outputs, 1000, 1000)
    for folder in (tmp_path, *tmp_path.parents, tiny_checkpoint.parent, *tiny_checkpoint.parents):
        if folder.owner() == "root" and folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    how = {"user": 1000, "group": 1000, "env": environment}
    try:
        process = start(inputs, outputs, tiny_checkpoint, "--preview", **how)
    except PermissionError:
        pytest.skip("needs an interpreter that other users may run")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert sorted(path.name for path in outputs.iterdir()) == ["000.npz", "000.png"]


def test_writing_over_an_output_keeps_it_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "case.npz"
    write_case(path, np.zeros(SHAPE, np.uint8))
    opened = open(path, "rb")
    write_case(path, np.ones(SHAPE, np.uint8))
    with opened, np.load(opened) as old, np.load(path) as new:
        assert not old["segs"].any() and new["segs"].all()
