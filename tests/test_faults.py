"""Killed, stopped, out of disk, twice at once, among bad files: nothing is lost or half written."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, SHAPE, case_arrays
from scans import written
from utils.formats.case import write_case

KILLS = 50
WRITE_FOREVER = """
import sys, numpy as np
from pathlib import Path
from utils.formats.case import write_case
segs = np.random.default_rng(0).integers(0, 256, (20, 128, 128), np.uint8)
print("ready", flush=True)
while True:
    write_case(Path(sys.argv[1]), segs)
"""


def cases(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        image = np.random.default_rng(i).integers(1, 256, SHAPE, np.uint8)
        np.savez_compressed(folder / f"{i:03d}.npz", **case_arrays(imgs=image))
    return folder


def infer(inputs: Path, outputs: Path, checkpoint: Path, *options: str, **how) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "infer.py"), "--inputs", str(inputs)]
    command += ["--outputs", str(outputs), "--checkpoint", str(checkpoint), "--device=cpu"]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )


def segs_in(folder: Path) -> dict[str, np.ndarray]:
    """Of all visible files; reading one that is not whole fails."""
    found = {}
    for path in folder.glob("[!.]*"):
        with np.load(path) as file:
            found[path.name] = file["segs"]
    return found


def wait_for_outputs(folder: Path, count: int, process: subprocess.Popen) -> None:
    while len(list(folder.glob("[!.]*"))) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)


def test_a_kill_at_any_moment_leaves_an_output_whole_or_absent(tmp_path):
    moments = random.Random(0)
    for i in range(KILLS):
        path = tmp_path / f"{i}.npz"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOREVER, str(path)], cwd=ROOT, stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.wait()
        process.stdout.close()
    found = segs_in(tmp_path)
    assert 0 < len(found) <= KILLS
    expected = np.random.default_rng(0).integers(0, 256, (20, 128, 128), np.uint8)
    for segs in found.values():
        np.testing.assert_array_equal(segs, expected)


def test_a_rerun_finishes_what_a_kill_has_left(tmp_path, tiny_checkpoint):
    inputs, outputs = cases(tmp_path / "inputs", 8), tmp_path / "outputs"
    whole = infer(inputs, tmp_path / "whole", tiny_checkpoint)
    assert whole.wait() == 0
    process = infer(inputs, outputs, tiny_checkpoint)
    outputs.mkdir(exist_ok=True)
    wait_for_outputs(outputs, 2, process)
    process.kill()
    process.wait()
    assert 2 <= len(segs_in(outputs)) < 8
    assert infer(inputs, outputs, tiny_checkpoint).wait() == 0
    expected = segs_in(tmp_path / "whole")
    found = segs_in(outputs)
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)


def test_sigterm_leaves_no_part_and_tells_by_its_status(tmp_path, tiny_checkpoint):
    inputs, outputs = cases(tmp_path / "inputs", 200), tmp_path / "outputs"
    outputs.mkdir()
    process = infer(inputs, outputs, tiny_checkpoint)
    wait_for_outputs(outputs, 2, process)
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert 2 <= len(segs_in(outputs)) < 200
    assert not list(outputs.glob(".*"))


def test_two_runs_on_the_same_folders(tmp_path, tiny_checkpoint):
    inputs = cases(tmp_path / "inputs", 6)
    assert infer(inputs, tmp_path / "whole", tiny_checkpoint).wait() == 0
    both = [infer(inputs, tmp_path / "outputs", tiny_checkpoint) for _ in range(2)]
    for process in both:
        assert process.wait() == 0, process.stderr.read()
    found, expected = segs_in(tmp_path / "outputs"), segs_in(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)
    assert not list((tmp_path / "outputs").glob(".*"))


def limit_files(size: int) -> None:
    """As a disk that is full: no file may grow further."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("name", ["case.npz", "scan.nii.gz", "scan.nrrd", "scan.nii"])
def test_a_full_disk_fails_the_case_and_leaves_nothing(name, tmp_path, tiny_checkpoint):
    options = []
    if name == "case.npz":
        np.savez_compressed(tmp_path / name, **case_arrays())
    else:
        written(tmp_path / name)
        options = ["--click=3,4,15,1"]
    process = infer(
        tmp_path / name,
        tmp_path / "outputs",
        tiny_checkpoint,
        *options,
        preexec_fn=lambda: limit_files(64),
    )
    _, err = process.communicate()
    assert process.returncode == 1 and f"FAILED {name}: " in err
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


def test_a_corrupt_file_among_a_hundred(tmp_path, tiny_checkpoint):
    inputs, outputs = cases(tmp_path / "inputs", 100), tmp_path / "outputs"
    broken = inputs / "050.npz"
    broken.write_bytes(broken.read_bytes()[:-100])
    process = infer(inputs, outputs, tiny_checkpoint)
    _, err = process.communicate()
    assert process.returncode == 1 and len(segs_in(outputs)) == 99
    assert err.splitlines() == [
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
        process = infer(inputs, outputs, tiny_checkpoint, "--preview", **how)
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
