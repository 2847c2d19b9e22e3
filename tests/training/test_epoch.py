"""Epochs in this process: what the optimizer sees, mixed precision, and that training learns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY
from runs import write_cases
from segment_anything import sam_model_registry3D
from segment_anything.prompts import Box, Prompts
from train import build_run, get_args_parser
from utils.evaluation.protocol import play, timed_predictor
from utils.formats.case import Case, LabelledCase
from utils.formats.prepared import map_volumes
from utils.inference.baseline import predict_baseline
from utils.runtime.device import choose_precision
from utils.runtime.distributed import Processes
from utils.training import published_step
from utils.training.epoch import BadFiles, Run, Stop, Stopped, TrainingError, train_one_epoch
from utils.training.optimizer import make_optimizer, make_scheduler
from utils.training.records import finish_epoch
from utils.training.state import TrainState, read_state, resume, save_state

CPU = Processes(0, 1, torch.device("cpu"))
# Masks as fine as the ROI, which a patch of 8 would not give.
LEARNS = TINY | dict(patch_size=4, global_attn_indexes=(0, 1), decoder_mlp_dim=64)


def begin(data: Path, *options: str, sizes=TINY, lr: float = 3e-3) -> tuple[Run, TrainState]:
    torch.manual_seed(0)
    args = get_args_parser().parse_args(
        ["--data", str(data), "--min_voxels=20", "--num_workers=0", *options]
    )
    model = sam_model_registry3D["vit_b_ori"](**sizes).train()
    optimizer = make_optimizer(model, lr, 0.1)
    scheduler = make_scheduler(optimizer, "multisteplr", [10**6], 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=args.amp == "fp16")
    state = TrainState(model, "vit_b_ori", dict(sizes), optimizer, scheduler, scaler)
    precision = choose_precision(args.amp, CPU.device)
    return build_run(args, state, CPU, precision, Stop()), state


def record_gradients(state: TrainState) -> list[torch.Tensor]:
    """Those of one tensor at each optimizer step, which then does nothing."""
    seen: list[torch.Tensor] = []
    weight = state.model.image_encoder.pos_embed
    state.optimizer.step = lambda: seen.append(weight.grad.clone())
    return seen


def test_the_optimizer_sees_the_mean_over_a_window_and_over_a_short_last_one(tmp_path):
    data = write_cases(tmp_path, 5)
    gradients = []
    for steps in ("1", "2"):
        run, state = begin(data, "--batch_size=1", "--accumulation_steps", steps)
        gradients.append(record_gradients(state))
        train_one_epoch(run, state)
    single, windows = gradients
    assert len(single) == 5 and len(windows) == 3
    for i, window in enumerate(windows):
        mean = torch.stack(single[2 * i : 2 * i + 2]).mean(dim=0)
        torch.testing.assert_close(window, mean, rtol=1e-4, atol=1e-7)


def test_a_window_of_batches_equals_a_large_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(published_step, "round_without_point", lambda *_: 4)  # else of each batch
    data = write_cases(tmp_path, 4)
    gradients = []
    for batch_size, steps in ((4, 1), (2, 2), (1, 4)):
        options = (f"--batch_size={batch_size}", f"--accumulation_steps={steps}")
        run, state = begin(data, *options)
        gradients.append(record_gradients(state))
        train_one_epoch(run, state)
    large, *others = gradients
    for other in others:
        torch.testing.assert_close(other, large, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_is_close_to_fp32(tmp_path, amp):
    data = write_cases(tmp_path, 2)
    losses = []
    for option in ("fp32", amp):
        run, state = begin(data, "--batch_size=2", "--accumulation_steps=1", "--amp", option)
        train_one_epoch(run, state)
        losses.append(state.progress.loss_sum)
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]


def test_scaler_and_scheduler_are_saved_and_taken_up(tmp_path):
    data = write_cases(tmp_path / "data", 2)
    run, state = begin(data, "--batch_size=2", "--accumulation_steps=1", "--amp=fp16")
    train_one_epoch(run, state)
    state.scheduler.step()
    state.progress.epoch = 1
    save_state(tmp_path / "state.pth", state, {})
    content = read_state(tmp_path / "state.pth")
    assert content["lr_scheduler_state_dict"] == state.scheduler.state_dict()
    _, other = begin(data, "--amp=fp16")
    resume(other, content)
    assert other.scaler.state_dict() == state.scaler.state_dict() != {}
    assert other.scheduler.state_dict() == state.scheduler.state_dict()
    assert other.progress == state.progress
    moments = other.optimizer.state_dict()["state"]
    for index, values in state.optimizer.state_dict()["state"].items():
        assert torch.equal(moments[index]["exp_avg_sq"], values["exp_avg_sq"])


def test_options_that_change_when_resuming_count(tmp_path):
    data = write_cases(tmp_path / "data", 2)
    _, state = begin(data)
    state.progress.epoch = 7
    save_state(tmp_path / "state.pth", state, {})
    _, other = begin(data, lr=1.0)
    other.scheduler = make_scheduler(other.optimizer, "steplr", [3], 0.5)
    resume(other, read_state(tmp_path / "state.pth"))
    rates = [group["lr"] for group in other.optimizer.param_groups]
    assert rates == pytest.approx([0.25, 0.025, 0.025])


def test_a_stop_keeps_what_the_last_optimizer_step_left(tmp_path):
    data = write_cases(tmp_path, 5)
    run, state = begin(data, "--batch_size=1", "--accumulation_steps=2")

    def stop_in_the_second_window():
        for i, batch in enumerate(run.loader):
            run.stop.number = 15 if i == 2 else 0
            yield batch

    with pytest.raises(Stopped):
        train_one_epoch(replace(run, loader=stop_in_the_second_window()), state)
    assert state.progress.step == 2 and state.progress.loss_sum > 0
    whole, same = begin(data, "--batch_size=1", "--accumulation_steps=2")
    expected = train_one_epoch(whole, same)
    run.stop.number = 0
    row = train_one_epoch(run, state)
    assert [row[key] for key in ("loss", "dice", "lr")] == [
        expected[key] for key in ("loss", "dice", "lr")
    ]
    assert state.progress == same.progress
    for name, tensor in same.model.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_nothing_is_trained_where_an_epoch_is_done_but_for_its_validation(tmp_path):
    run, state = begin(write_cases(tmp_path, 3), "--batch_size=1", "--accumulation_steps=2")
    row = train_one_epoch(run, state)
    seen = record_gradients(state)
    again = train_one_epoch(run, state)
    assert not seen and again["loss"] == row["loss"] and again["samples_per_second"] == 0


def test_too_many_bad_files_are_an_error_and_each_is_reported_once(capsys):
    files = BadFiles(total=10, max_share=0.2)
    for path in ("a", "b", "a"):
        files.add({path: "broken"}, is_printed=True)
        files.check()
    files.add({"c": "gone"}, is_printed=False)
    with pytest.raises(TrainingError, match="3 of 10 training files"):
        files.check()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["SKIPPED a: broken", "SKIPPED b: broken"]


def test_files_that_break_while_training_are_counted(tmp_path, capsys):
    data = write_cases(tmp_path, 4)
    options = ("--batch_size=1", "--accumulation_steps=1", "--max_bad_share=0.3")
    run, state = begin(data, *options)
    (data / "2.npz").write_bytes(b"broken")
    train_one_epoch(run, state)
    assert capsys.readouterr().err.count("SKIPPED") == 1
    (data / "1.npz").unlink()
    with pytest.raises(TrainingError, match="2 of 4 training files can't be used"):
        state.progress.epoch, state.progress.step = 1, 0
        train_one_epoch(run, state)


def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(tmp_path):
    data = write_cases(tmp_path, 2)
    run, state = begin(data, "--batch_size=2", "--accumulation_steps=1")
    weight = state.model.mask_decoder.mask_tokens.weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(
        TrainingError, match="the gradient is not finite in epoch 0, on the cases .*npz"
    ):
        train_one_epoch(run, state)
    assert all(p.isfinite().all() for p in state.model.parameters())


def labelled_case(path: Path) -> LabelledCase:
    """A prepared case as one to be evaluated, with its box."""
    image, gts = (np.array(volume) for volume in map_volumes(path))
    inside = np.argwhere(gts == 1)
    start, stop = inside.min(axis=0), inside.max(axis=0) + 1
    box = Box(tuple(start.tolist()), tuple(stop.tolist()))
    return LabelledCase(Case(path.name, image, (1.5,) * 3, (Prompts(box),), 1), gts, (1,))


@pytest.mark.slow
def test_two_cases_are_learnt_by_heart_and_segmented_by_inference(tmp_path):
    """Through all that the user's training and inference go through, in about half a minute."""
    data = write_cases(tmp_path, 2)
    options = ("--batch_size=2", "--accumulation_steps=1")
    run, state = begin(data, *options, sizes=LEARNS)
    for epoch in range(160):
        finish_epoch(state, {"epoch": epoch} | train_one_epoch(run, state), is_validated=False)
    dices = state.progress.dices
    assert np.mean(dices[:10]) < 0.5 and np.mean(dices[-10:]) > 0.95
    state.model.eval()
    for path in sorted(data.glob("*.npz")):
        predict = timed_predictor(lambda case: predict_baseline(state.model, case))
        *_, (last, _) = play(labelled_case(path), predict)
        # Points drawn within 10 voxels of a prompt may miss the object, and rounds are united.
        assert last.scores[0, 0] > 0.8, path.name  # DSC
