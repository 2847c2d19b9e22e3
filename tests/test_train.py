"""train.py from the outside: runs, resuming, signals, several processes, bad files and options."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ROOT, TINY, case_arrays
from runs import (
    command,
    content_of,
    log_of,
    numbers,
    start,
    train,
    train_in_own_process,
    write_cases,
    write_val_case,
)
from segment_anything import sam_model_registry3D
from utils.inference.checkpoint import build_model, read_checkpoint
from utils.runtime.device import show_gpus
from utils.training import records
from utils.training.optimizer import make_optimizer, make_scheduler
from utils.training.records import tensorboard
from utils.training.state import TrainState, read_state, resume


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A tiny network as training begins with it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("ckpt") / "tiny.pth"
    model = sam_model_registry3D["vit_b_ori"](**TINY)
    torch.save({"model_state_dict": model.state_dict(), "model_args": TINY}, path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, weights) -> Path:
    """A run of two epochs; beside it its data."""
    folder = tmp_path_factory.mktemp("work")
    val = write_val_case(folder / "val/MR/MR_Some")
    np.savez_compressed(val / "broken.npz", **case_arrays())
    data = write_cases(folder / "data")
    result = train(weights, data, folder, "--val_cases", str(val.parent), "--val_every", "2")
    assert result.returncode == 0, result.stderr
    assert "NOT VALIDATED" in result.stderr and "broken.npz: expected gts" in result.stderr
    return folder


def test_a_run_leaves_checkpoints_log_and_curves(finished):
    names = {path.name for path in (finished / "run").iterdir()}
    assert names >= {f"sam_model_{which}.pth" for which in ("latest", "loss_best", "dice_best")}
    assert names >= {"log.csv", "Loss.png", "Dice.png", "options.json"}
    assert not [name for name in names if name.endswith(".tmp")]
    rows = log_of(finished)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert rows[0]["val_DSC_Final"] == "" and 0 <= float(rows[1]["val_DSC_Final"]) <= 1
    options = json.loads((finished / "run/options.json").read_text())
    assert options["args"]["lr"] == 1e-3 and options["ran_on"]["torch"] == torch.__version__


def test_a_checkpoint_has_the_keys_of_the_original_and_is_read_by_infer(finished, weights):
    content = content_of(finished)
    keys = "epoch model_state_dict optimizer_state_dict lr_scheduler_state_dict losses dices"
    assert content.keys() >= {*keys.split(), "best_loss", "best_dice", "args", "used_datas"}
    assert content["epoch"] == 2 and len(content["losses"]) == 2
    assert content["best_loss"] == min(content["losses"])
    checkpoint = read_checkpoint(finished / "run/sam_model_latest.pth")
    trained = build_model(checkpoint).state_dict()
    before = torch.load(weights, weights_only=True)["model_state_dict"]
    changed = [name for name in before if not torch.equal(trained[name], before[name])]
    assert any(name.startswith("image_encoder") for name in changed)
    assert any(name.startswith("mask_decoder") for name in changed)
    assert checkpoint.policy == "baseline"


def test_a_stopped_run_goes_on_to_the_same_losses(finished, weights, tmp_path):
    """Stopped by a signal within an epoch, between two optimizer steps."""
    args = command(weights, finished / "data", tmp_path, "--val_every", "2")
    args += ["--val_cases", str(finished / "val/MR")]
    process = start(args)
    for line in process.stdout:
        if "batches of" in line:
            process.send_signal(signal.SIGTERM)
            break
    output = process.stdout.read()
    assert process.wait() == 128 + signal.SIGTERM
    assert "stopped in epoch 0, batch" in output and "--resume goes on" in output
    assert content_of(tmp_path)["epoch"] == 0
    options = ("--val_every", "2", "--val_cases", str(finished / "val/MR"), "--resume")
    assert train(weights, finished / "data", tmp_path, *options).returncode == 0
    assert numbers(tmp_path) == numbers(finished)
    assert log_of(tmp_path)[1]["val_DSC_AUC"] == log_of(finished)[1]["val_DSC_AUC"]
    ours, theirs = (content_of(f)["model_state_dict"] for f in (tmp_path, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_validation_that_was_stopped_is_made_up_for(finished, weights, tmp_path, monkeypatch):
    args = (weights, finished / "data", tmp_path, "--val_cases", str(finished / "val/MR"))
    args += ("--val_every", "2")

    def play_and_stop(*case):
        signal.raise_signal(signal.SIGTERM)
        return play(*case)

    play = records.play
    monkeypatch.setattr(records, "play", play_and_stop)
    result = train(*args)
    assert result.returncode == 128 + signal.SIGTERM
    assert "stopped in epoch 1, batch 5; --resume goes on" in result.stdout
    content = content_of(tmp_path)
    assert content["epoch"] == 1 and content["step"] == 5 and len(log_of(tmp_path)) == 1
    monkeypatch.undo()
    assert train(*args, "--resume").returncode == 0
    assert numbers(tmp_path) == numbers(finished)
    assert log_of(tmp_path)[1]["val_DSC_AUC"] == log_of(finished)[1]["val_DSC_AUC"]
    ours, theirs = (content_of(f, "dice_best") for f in (tmp_path, finished))
    assert ours["best_dice"] == theirs["best_dice"] > 0


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (("multisteplr", "1", "3"), [1e-3, 1e-4, 1e-4, 1e-5]),
        (("steplr", "2"), [1e-3, 1e-3, 1e-4, 1e-4]),
        (("coswarm", "3"), [1e-3, 7.5e-4, 2.5e-4, 1e-3]),
        (("linear", "1"), [1e-4, 2.8e-4, 4.6e-4, 6.4e-4]),
    ],
)
def test_a_resumed_run_goes_on_at_the_rate_of_its_epoch(schedule, rates, weights, tmp_path):
    data = write_cases(tmp_path / "data", 1)
    options = ["--lr_scheduler", schedule[0], "--step_size", *schedule[1:]]
    assert train(weights, data, tmp_path, *options, "--num_epochs=2").returncode == 0
    state = content_of(tmp_path)["lr_scheduler_state_dict"]
    assert state["last_epoch"] == 2 and state["_last_lr"][0] == pytest.approx(rates[2])
    assert train(weights, data, tmp_path, *options, "--num_epochs=4", "--resume").returncode == 0
    assert [lr for *_, lr in numbers(tmp_path)] == pytest.approx(rates)


def test_two_processes_train_as_one_with_the_double_batch(weights, tmp_path):
    data = write_cases(tmp_path / "data", 6)
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--lr_scheduler", "steplr", "--step_size", "1", "--save_memory"]
    result = train(weights, data, one, *options, "--batch_size=2")
    assert result.returncode == 0, result.stderr
    # The option for several GPUs; on a CPU it is as many processes.
    options += ["--multi_gpu", "--gpu_ids", "0", "1"]
    result = train_in_own_process(weights, data, two, *options)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(numbers(two), numbers(one), rtol=1e-4)
    assert numbers(one)[1][2] == pytest.approx(1e-4)
    ours, theirs = (content_of(f)["model_state_dict"] for f in (two, one))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)


def test_an_error_that_nobody_expects_ends_the_process_and_its_readers(weights, tmp_path):
    data = write_cases(tmp_path / "data", 3)
    script = "import sys, train; from utils.training import epoch\n"
    script += "epoch.dice = lambda *_: 1 / 0\n"
    script += "sys.exit(train.main(train.get_args_parser().parse_args()))"
    options = command(weights, data, tmp_path, "--num_workers=1")[1:]
    process = start(["-c", script, *options], stderr=subprocess.PIPE, cwd=ROOT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "ZeroDivisionError" in errors


def test_other_networks_and_other_epochs_are_not_resumed(finished, weights, tmp_path):
    data = finished / "data"
    options = ("--resume", "--num_epochs=3")
    result = train(weights, data, finished, *options, "--img_size=64")
    assert result.returncode == 2 and "--resume: the run is of vit_b_ori with" in result.stderr
    shutil.copytree(finished / "run", tmp_path / "run")
    path = tmp_path / "run/sam_model_latest.pth"
    torch.save(torch.load(path, weights_only=True) | {"step": 2}, path)
    result = train(weights, data, tmp_path, *options, "--batch_size=2")
    assert result.returncode == 2 and "within an epoch of batch_size 1" in result.stderr
    result = train(weights, write_cases(tmp_path / "data", 6), tmp_path, *options)
    assert result.returncode == 2 and "an epoch of other training files than the 6" in result.stderr


def test_a_run_is_not_overwritten(finished, weights):
    result = train(weights, finished / "data", finished)
    assert result.returncode == 2 and "holds a run: go on with --resume" in result.stderr


def test_a_checkpoint_of_the_original_is_resumed(weights, tmp_path):
    """Its keys, its options as a Namespace, no sizes."""
    model = sam_model_registry3D["vit_b_ori"](**TINY)
    optimizer = make_optimizer(model, 1e-3, 0.1)
    scheduler = make_scheduler(optimizer, "multisteplr", [120, 180], 0.1)
    content = {
        "epoch": 7,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "lr_scheduler_state_dict": scheduler.state_dict(),
        "losses": [3.0] * 7,
        "dices": [0] * 7,
        "best_loss": 3.0,
        "best_dice": 0.0,
        "args": argparse.Namespace(lr=8e-4, step_size=[120, 180]),
        "used_datas": ["data/medical_preprocessed"],
    }
    torch.save(content, tmp_path / "sam_model_latest.pth")
    state = TrainState(
        model, "vit_b_ori", TINY, optimizer, scheduler, torch.amp.GradScaler("cpu", enabled=False)
    )
    resume(state, read_state(tmp_path / "sam_model_latest.pth"))
    assert state.progress.epoch == 7 and state.progress.losses == [3.0] * 7
    assert state.progress.step == 0


def test_bad_files_are_named_once_and_skipped_up_to_a_share(weights, tmp_path):
    data = write_cases(tmp_path / "data", 3)
    (data / "bad.npz").write_bytes(b"broken")
    result = train(weights, data, tmp_path, "--max_bad_share", "0.3")
    assert result.returncode == 0
    assert result.stderr.count("bad.npz: expected a whole .npz") == 1
    result = train(weights, data, tmp_path / "strict", "--max_bad_share", "0.2")
    assert result.returncode == 1
    assert "1 of 4 training files can't be used, more than a share of 0.2" in result.stderr


def test_a_loss_that_is_not_finite_stops_with_the_cases(weights, tmp_path):
    data = write_cases(tmp_path / "data", 3)
    content = torch.load(weights, weights_only=True)
    content["model_state_dict"]["image_encoder.pos_embed"].fill_(torch.nan)
    torch.save(content, tmp_path / "nan.pth")
    result = train(tmp_path / "nan.pth", data, tmp_path, "--num_workers=1")
    assert result.returncode == 1
    assert "the loss is not finite in epoch 0, on the cases" in result.stderr
    assert any(f"{i}.npz" in result.stderr for i in range(3))
    assert not (tmp_path / "run/sam_model_latest.pth").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint", "nowhere.pth"], "python ckpt/download.py nowhere"),
        (
            ["--val_cases", "nowhere"],
            "--val_cases nowhere: expected cases with gts, got none: expected .npz files",
        ),
        (["--data", "nowhere"], "no training data: expected cases made by"),
        (["--img_size", "64"], "tensors do not fit the network"),
        (["--model_type", "vit_x"], "expected a model_type of default, hybrid_s, vit_b_ori"),
        (["--device", "cuda:7"], "--device cuda:7 can't be used"),
        (["--step_size", "1.5"], "argument --step_size"),
        (["--lr_scheduler", "none"], "argument --lr_scheduler"),
    ],
)
def test_options_that_do_not_fit_are_named(weights, tmp_path, options, message):
    result = train(weights, tmp_path / "empty", tmp_path, *options)
    assert result.returncode in (1, 2) and message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_empty_checkpoint_is_random_weights(tmp_path):
    """So that train.sh, which names one, can be told to do without."""
    data = write_cases(tmp_path / "data", 1)
    options = ["--model_type=vit_s_ori", "--img_size=32", "--num_epochs=1", "--checkpoint", ""]
    result = train("", data, tmp_path, *options)
    assert result.returncode == 0, result.stderr
    assert "from random weights" in result.stdout
    assert content_of(tmp_path)["args"]["checkpoint"] is None


def test_gpus_are_counted_among_those_that_a_scheduler_gave(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    show_gpus([0, 2])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,7"
    with pytest.raises(ValueError, match=r"--gpu_ids: expected 0 to 1, got \[2\]"):
        show_gpus([2])


def test_partial_weights_are_taken_when_allowed(weights, tmp_path):
    data = write_cases(tmp_path / "data", 2)
    options = ["--img_size", "64", "--allow_partial_weight", "--num_epochs=1"]
    result = train(weights, data, tmp_path, *options)
    assert result.returncode == 0, result.stderr
    assert "left as initialised: image_encoder.pos_embed" in result.stdout
    assert content_of(tmp_path)["model_args"]["img_size"] == 64


def test_train_sh_names_the_options_and_passes_others_on(weights, tmp_path):
    data = write_cases(tmp_path / "data", 2)
    script = ["bash", str(ROOT / "train.sh"), *command(weights, data, tmp_path)[1:]]
    options = ["--img_size=32", "--num_epochs=1", "--multi_click", "--lr_scheduler=coswarm"]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*script, *options], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    args = content_of(tmp_path)["args"]
    assert args["step_size"] == [120, 180] and args["weight_decay"] == 0.1 and args["multi_click"]


def test_a_second_signal_is_harmless(weights, tmp_path):
    data = write_cases(tmp_path / "data", 3)
    args = command(weights, data, tmp_path, "--num_epochs=1000", "--num_workers=1")
    process = start(args, start_new_session=True)
    for line in process.stdout:
        if line.startswith("epoch 0"):
            break
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does, workers too
    time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert content_of(tmp_path)["epoch"] >= 1


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["auto", "fp16", "fp32"])
def test_a_gpu_trains_as_a_cpu_does(finished, weights, tmp_path, amp):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    options = ["--device=cuda", "--amp", amp, "--num_workers=2"]
    result = train(weights, finished / "data", tmp_path, *options)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(numbers(tmp_path)[0][0], numbers(finished)[0][0], rtol=0.02)


def test_rows_of_the_log_go_to_tensorboard_where_it_is_installed(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, *scalar):
            written.append(scalar)

        def flush(self):
            written.append("flushed")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    tensorboard(tmp_path)({"epoch": 3, "loss": 1.5})
    assert written == [str(tmp_path / "tensorboard"), ("loss", 1.5, 3), "flushed"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed
    tensorboard(tmp_path)({"epoch": 3, "loss": 1.5})


def test_torchrun_passes_a_signal_on_and_all_processes_save_together(weights, tmp_path):
    data = write_cases(tmp_path / "data", 3)
    options = ["--num_epochs=1000", "--multi_gpu", "--gpu_ids", "0", "1"]
    process = start(command(weights, data, tmp_path, *options), stderr=subprocess.STDOUT)
    for line in process.stdout:
        if line.startswith("epoch 0"):
            break
    process.send_signal(signal.SIGTERM)
    output = process.stdout.read()
    assert process.wait(60) != 0 and "--resume goes on" in output
    assert "Warning" not in output and content_of(tmp_path)["epoch"] >= 1
