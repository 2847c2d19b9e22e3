"""infer.py and predict.sh from files to files, on a tiny network with random weights."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import infer
from conftest import ROOT, SHAPE, TINY, TINY_HYBRID, as_objects
from seeded import published_weights
from segment_anything.bounds import AdaptiveSettings
from utils.formats.case import read_case
from utils.inference import load
from utils.inference.baseline import predict_baseline
from utils.inference.method import make_segmenter


@pytest.fixture
def run(tmp_path, tiny_checkpoint, capsys):
    """Runs infer.py on tmp_path/inputs -> (status, stdout, stderr)."""

    def call(*options: str, checkpoint=tiny_checkpoint):
        args = ["--inputs", str(tmp_path / "inputs"), "--outputs", str(tmp_path / "outputs")]
        args += ["--checkpoint", str(checkpoint), "--device", "cpu", *options]
        status = infer.main(infer.get_args_parser().parse_args(args))
        return status, *capsys.readouterr()

    return call


def outputs(tmp_path) -> list[str]:
    return sorted(os.listdir(tmp_path / "outputs")) if (tmp_path / "outputs").is_dir() else []


def segs_of(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["segs"]


def test_every_case_of_a_folder_is_segmented(run, write_npz, tmp_path, tiny_model):
    paths = [write_npz("b.npz"), write_npz("a.npz", prev_pred=np.ones(SHAPE, np.uint8))]
    status, out, err = run("--seed", "5")
    assert (status, err) == (0, "") and outputs(tmp_path) == ["a.npz", "b.npz"]
    for path in paths:
        expected = predict_baseline(tiny_model, read_case(path), seed=5)
        np.testing.assert_array_equal(segs_of(tmp_path / "outputs" / path.name), expected)
    lines = out.splitlines()
    assert lines[0] == "tiny.pth: local network, baseline policy, fp32 on cpu"
    assert lines[1].startswith("a.npz: objects 2, rounds of prompts 1, ")
    assert "peak memory" in lines[1] and lines[2].startswith("b.npz: ")


def test_one_file_as_input(run, write_npz, tmp_path):
    write_npz("a.npz"), write_npz("b.npz")
    status, *_ = run("--inputs", str(tmp_path / "inputs" / "b.npz"))
    assert status == 0 and outputs(tmp_path) == ["b.npz"]


def test_a_bad_case_does_not_stop_the_others(run, write_npz, tmp_path):
    write_npz("a.npz", imgs=None), write_npz("b.npz"), write_npz("c.npz", spacing=None)
    (tmp_path / "inputs" / "d.npz").write_bytes(b"PK")
    status, out, err = run()
    assert status == 1 and outputs(tmp_path) == ["b.npz"]
    assert err.splitlines() == [
        "FAILED a.npz: expected a volume in imgs, got none",
        "FAILED c.npz: expected spacing, got none",
        "FAILED d.npz: expected a whole .npz (zip) file, got: File is not a zip file",
        "3 of 4 cases failed: a.npz, c.npz, d.npz",
    ]


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_an_output_that_cannot_be_written_fails_its_case_alone(
    code, run, write_npz, tmp_path, monkeypatch
):
    write_npz("a.npz"), write_npz("b.npz")
    replace = os.replace

    def fail_once(source, target):
        if Path(target).name == "a.npz":
            raise OSError(code, os.strerror(code))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    status, _, err = run()
    assert status == 1 and outputs(tmp_path) == ["b.npz"]
    target = tmp_path / "outputs" / "a.npz"
    assert err.splitlines() == [
        f"FAILED a.npz: [Errno {code}] {os.strerror(code)}: '{target}'",
        "1 of 2 cases failed: a.npz",
    ]


def test_a_case_that_may_not_be_read_is_told_in_a_line(run, write_npz, tmp_path, monkeypatch):
    path = write_npz()

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("utils.inference.sources.read_case", refuse)
    status, _, err = run()
    assert status == 1
    assert err.splitlines()[0] == f"FAILED case.npz: [Errno 13] Permission denied: '{path}'"


def test_an_error_that_nobody_expected_keeps_its_traceback(run, write_npz, tmp_path, monkeypatch):
    write_npz("a.npz"), write_npz("b.npz")

    def fail_on_a(model, case, **options):
        if case.name == "a.npz":
            raise RuntimeError("odd")
        return predict_baseline(model, case, **options)

    monkeypatch.setattr("utils.inference.method.predict_baseline", fail_on_a)
    status, _, err = run()
    assert status == 1 and outputs(tmp_path) == ["b.npz"]
    first, *_, last, summary = err.splitlines()
    assert first == "Traceback (most recent call last):" and "fail_on_a" in err
    assert (last, summary) == ("FAILED a.npz: odd", "1 of 2 cases failed: a.npz")


def test_an_outputs_folder_that_cannot_be_made(run, write_npz, tmp_path):
    write_npz()
    (tmp_path / "outputs").write_text("a file")
    status, _, err = run()
    assert status == 2 and "can't be written: [Errno 17] File exists" in err


def test_an_outputs_folder_that_cannot_be_written(run, write_npz):
    write_npz()
    status, out, err = run("--outputs", "/proc")  # not even by root
    assert status == 2 and out == "" and "--outputs /proc: can't be written: " in err


def test_cases_are_not_replaced_by_their_outputs(run, write_npz, tmp_path):
    content = write_npz().read_bytes()
    status, _, err = run("--outputs", str(tmp_path / "outputs" / ".." / "inputs"))
    assert status == 2 and "holds case.npz itself" in err
    assert (tmp_path / "inputs" / "case.npz").read_bytes() == content


def test_empty_and_missing_inputs(run, tmp_path):
    status, _, err = run()
    assert status == 2 and err == f"--inputs {tmp_path / 'inputs'}: no such file or folder\n"
    (tmp_path / "inputs").mkdir()
    status, _, err = run()
    assert status == 2 and err.startswith("no cases: expected .npz cases, images (")


def test_no_checkpoint_names_the_download_command(write_npz, tmp_path, monkeypatch, capsys):
    path = write_npz()
    monkeypatch.setattr(load, "CKPT_DIR", tmp_path / "ckpt")
    args = ["--inputs", str(path), "--outputs", str(tmp_path / "outputs")]
    assert infer.main(infer.get_args_parser().parse_args(args)) == 2
    assert "python ckpt/download.py sam_med3d_turbo_cvpr_coreset" in capsys.readouterr().err


def test_the_checkpoint_in_ckpt_is_used(write_npz, tmp_path, tiny_checkpoint, monkeypatch, capsys):
    path = write_npz()
    (tmp_path / "ckpt").mkdir()
    shutil.copy(tiny_checkpoint, tmp_path / "ckpt" / "sam_med3d_turbo.pth")
    monkeypatch.setattr(load, "CKPT_DIR", tmp_path / "ckpt")
    args = ["--inputs", str(path), "--outputs", str(tmp_path / "outputs")]
    assert infer.main(infer.get_args_parser().parse_args(args)) == 0
    assert capsys.readouterr().out.startswith("sam_med3d_turbo.pth: local network")


def test_a_missing_checkpoint_and_a_missing_device(run, write_npz, tmp_path):
    write_npz()
    status, _, err = run(checkpoint=tmp_path / "none.pth")
    assert status == 2 and "none.pth" in err
    status, _, err = run("--device", "cuda:77")
    assert status == 2 and "--device cuda:77 can't be used" in err
    assert outputs(tmp_path) == []


def test_the_policy_is_that_of_the_checkpoint_or_the_option(run, write_npz, tmp_path, tiny_model):
    write_npz()
    content = {"model_state_dict": tiny_model.state_dict(), "model_args": TINY, "policy": "other"}
    torch.save(content, tmp_path / "other.pth")
    status, _, err = run(checkpoint=tmp_path / "other.pth")
    assert (
        status == 2
        and "other.pth: expected a policy of ('baseline', 'adaptive'), got 'other'" in err
    )
    status, out, _ = run("--policy", "baseline", checkpoint=tmp_path / "other.pth")
    assert status == 0 and "baseline policy" in out


def test_policy_args_are_obeyed_or_refused(run, write_npz, tmp_path, tiny_model):
    path = write_npz()
    content = {"model_state_dict": tiny_model.state_dict(), "model_args": TINY}
    content |= {"policy": "adaptive", "policy_args": {"roi_factor": 3.0}}
    torch.save(content, tmp_path / "wide.pth")
    status, out, _ = run(checkpoint=tmp_path / "wide.pth")
    assert status == 0 and "adaptive policy" in out
    segment = make_segmenter(tiny_model, "adaptive", AdaptiveSettings(roi_factor=3.0))
    segs = segs_of(tmp_path / "outputs" / path.name)
    np.testing.assert_array_equal(segs, segment(read_case(path)))
    assert (segs != make_segmenter(tiny_model, "adaptive")(read_case(path))).any()
    torch.save(content | {"policy_args": {"roi_scale": 3.0}}, tmp_path / "odd.pth")
    status, _, err = run(checkpoint=tmp_path / "odd.pth")
    assert status == 2 and "odd.pth: policy_args can't be obeyed" in err and "roi_scale" in err
    status, _, err = run("--backend", "medim", checkpoint=tmp_path / "wide.pth")
    assert status == 2 and "--backend medim: has no box corners" in err


def test_what_the_network_takes_for_wrong_is_said(run, write_npz, tmp_path, tiny_hybrid):
    write_npz()
    content = {"model_state_dict": tiny_hybrid.state_dict(), "model_args": TINY_HYBRID}
    content |= {"model_type": "hybrid_s", "policy": "adaptive"}
    for slope, intercept in ((0.0, 0.3), (0.0, 0.9)):
        content["policy_args"] = {"iou_slope": slope, "iou_intercept": intercept}
        torch.save(content, tmp_path / "small.pth")
        status, out, _ = run(checkpoint=tmp_path / "small.pth")
        said = "probably wrong, by the network's own estimate: 1 (IoU about 0.30)" in out
        assert status == 0 and said == (intercept == 0.3)


@pytest.mark.parametrize("options", [("--seed", "-1"), ("--batch-size", "0"), ("--policy", "x")])
def test_bad_options(options, run):
    with pytest.raises(SystemExit) as info:
        run(*options)
    assert info.value.code == 2


def test_medim_backend_refuses_other_sizes(run, write_npz):
    write_npz()
    status, _, err = run("--backend", "medim")
    assert status == 2 and "medim builds the published network only" in err


def test_help_comes_without_torch():
    """Start-up is most of the time of a round: nothing heavy is imported before it is needed."""
    code = "import sys, infer; infer.get_args_parser().format_help(); "
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def predict_sh(cwd: Path, *options: str, script: Path = ROOT / "predict.sh", **variables: str):
    environment = os.environ | {"PYTHON": sys.executable, "VIRTUAL_ENV": sys.prefix} | variables
    return subprocess.run(
        ["sh", script, *options], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_predict_sh_uses_its_own_inputs_and_outputs(write_npz, tmp_path, tiny_checkpoint):
    """Without options, in a folder with a space in its name."""
    clone = tmp_path / "a clone"
    for name in ("predict.sh", "infer.py", "requirements.txt", "utils", "segment_anything"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (clone / "ckpt").mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, clone / name)
    shutil.copy(tiny_checkpoint, clone / "ckpt" / "sam_med3d_turbo.pth")
    shutil.copytree(write_npz().parent, clone / "inputs")
    result = predict_sh(tmp_path, script=clone / "predict.sh")
    assert result.returncode == 0, result.stderr
    assert os.listdir(clone / "outputs") == ["case.npz"]


def fake_python(path: Path) -> Path:
    """An interpreter that notes where it runs and what it is asked, and makes a fake .venv.

    It has no module, unless there is a file $LOG.modules.
    """
    path.write_text(
        '#!/bin/sh\necho "$(pwd): $@" >>"$LOG"\n'
        'case "$1 $2" in\n'
        '"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;\n'
        '"-c "*) [ -e "$LOG.modules" ] ;;\n'
        '"-m pip") [ ! -e "$LOG.offline" ] ;;\n'
        "esac\n"
    )
    path.chmod(0o755)
    return path


def test_predict_sh_hands_its_options_on_and_stays_in_the_folder(tmp_path):
    python, log = fake_python(tmp_path / "python"), tmp_path / "log"
    (tmp_path / "log.modules").touch()
    result = predict_sh(tmp_path, "--outputs", "my out", PYTHON=str(python), LOG=str(log))
    assert result.returncode == 0, result.stderr
    expected = f"{ROOT}/infer.py --inputs {ROOT}/inputs --outputs {ROOT}/outputs --outputs my out"
    assert log.read_text().splitlines()[-1] == f"{tmp_path}: {expected}"


def test_predict_sh_on_a_fresh_machine_installs_once(tmp_path):
    for name in ("predict.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "utils", tmp_path / "utils")
    python, log = fake_python(tmp_path / "python"), tmp_path / "log"

    def call():
        log.write_text("")
        result = predict_sh(
            tmp_path,
            script=tmp_path / "predict.sh",
            PYTHON=str(python),
            LOG=str(log),
            VIRTUAL_ENV="",
            CONDA_PREFIX="",
        )
        return result, log.read_text()

    (tmp_path / "log.offline").touch()
    result, calls = call()
    assert result.returncode == 1 and "infer.py" not in calls  # offline: stops, and says why

    (tmp_path / "log.offline").unlink()
    result, calls = call()  # takes the installation up again
    assert result.returncode == 0
    assert "first run: installing requirements.txt into" in result.stderr
    assert "-m pip install" in calls and "infer.py --inputs" in calls

    result, calls = call()
    assert result.stderr == "" and "pip" not in calls and "infer.py --inputs" in calls

    (tmp_path / "requirements.txt").write_text("torch==9")  # changed: installs again
    assert "-m pip install" in call()[1]


def test_predict_sh_in_an_environment_that_lacks_torch_says_so(tmp_path):
    python = fake_python(tmp_path / "python")
    result = predict_sh(tmp_path, PYTHON=str(python), LOG=str(tmp_path / "log"))
    assert result.returncode == 2
    assert "the active environment lacks one of: torch" in result.stderr


def real_case(shared: Path, tmp_path: Path, path: str, **changes) -> Path:
    """A real case with changes, as the only one in inputs/."""
    with np.load(shared / "data" / "val" / path) as file:  # the numeric arrays
        arrays = {key: file[key] for key in ("imgs", "spacing")}
    target = tmp_path / "inputs" / "case.npz"
    target.parent.mkdir()
    np.savez_compressed(target, **(arrays | changes))
    return target


@pytest.fixture(scope="module")
def full_size_checkpoint(tmp_path_factory) -> Path:
    """Seeded weights of the published size."""
    path = tmp_path_factory.mktemp("ckpt") / "full.pth"
    torch.save({"model_state_dict": published_weights()}, path)
    return path


@pytest.mark.slow
def test_real_ultrasound_with_boxes(shared, run, tmp_path, full_size_checkpoint):
    source = shared / "data" / "val" / "US" / "US_Cardiac"
    status, out, err = run("--inputs", str(source), checkpoint=full_size_checkpoint)
    assert (status, err) == (0, "")
    (name,) = outputs(tmp_path)
    segs = segs_of(tmp_path / "outputs" / name)
    assert segs.shape == (19, 551, 669) and segs.any()
    assert "objects 3, rounds of prompts 1" in out


def test_real_brain_with_clicks(shared, run, tmp_path, full_size_checkpoint):
    path = "MR/MR_BraTS-T1c/MR_BraTS-T1c_bratsgli_0017.npz"
    with np.load(shared / "data" / "val" / path) as file:
        voxels = np.argwhere(file["gts"] == 1)
    clicks = as_objects([{"fg": voxels[[0, len(voxels) // 2]].tolist(), "bg": []}])
    order = as_objects([["fg", "fg"]])
    real_case(shared, tmp_path, path, clicks=clicks, clicks_order=order)
    status, out, err = run(checkpoint=full_size_checkpoint)
    assert (status, err) == (0, "") and "objects 1, rounds of prompts 2" in out
    segs = segs_of(tmp_path / "outputs" / "case.npz")
    assert segs.shape == (70, 218, 182) and segs.any()


@pytest.mark.parametrize("policy", [pytest.param("baseline", marks=pytest.mark.slow), "adaptive"])
def test_two_processes_share_the_cases(policy, run, write_npz, tmp_path, tiny_checkpoint):
    """Same outputs as one; a bad case stops neither, and the first process names it."""
    for i in range(5):
        write_npz(f"{i}.npz", imgs=np.random.default_rng(i).integers(1, 256, SHAPE, np.uint8))
    write_npz("bad.npz", imgs=None)
    assert run("--policy", policy)[0] == 1
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [ROOT / "infer.py", "--inputs", tmp_path / "inputs", "--outputs", tmp_path / "two"]
    command += ["--checkpoint", tiny_checkpoint, "--device", "cpu", "--policy", policy]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert result.stdout.count(": objects 2, rounds of prompts 1") == 5
    assert result.stderr.count("FAILED bad.npz") == 1
    assert result.stderr.count("1 of 6 cases failed: bad.npz") == 1
    assert sorted(os.listdir(tmp_path / "two")) == outputs(tmp_path)
    for name in outputs(tmp_path):
        one, two = (segs_of(tmp_path / folder / name) for folder in ("outputs", "two"))
        np.testing.assert_array_equal(one, two)


def test_reading_overlaps_computing(run, write_npz, monkeypatch):
    """The second case is read while the first is computed."""
    write_npz("a.npz"), write_npz("b.npz")
    events = []
    from utils.inference import method as policy
    from utils.inference import sources as source

    def read(path):
        events.append(f"read {path.name}")
        return read_case(path)

    def predict(model, case, **options):
        deadline = time.monotonic() + 10
        while "read b.npz" not in events and time.monotonic() < deadline:
            time.sleep(0.01)
        events.append(f"predict {case.name}")
        return predict_baseline(model, case, **options)

    monkeypatch.setattr(source, "read_case", read)
    monkeypatch.setattr(policy, "predict_baseline", predict)
    assert run()[0] == 0
    assert events == ["read a.npz", "read b.npz", "predict a.npz", "predict b.npz"]
