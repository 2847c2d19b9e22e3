"""The training step: equal to the published loop, and the same with memory-saving switched on."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss

from conftest import TINY
from seeded import DATA, randomise, seeded_roi
from segment_anything import sam_model_registry3D
from segment_anything.modeling.sam3D import Upscale
from utils.training.batch import Batch
from utils.training.clicks import Clicks
from utils.training.published_step import ROUNDS, PublishedStep, round_without_point
from utils.training.step import recompute_attention
from utils.training.streams import Stream, stream


def step_of(model, save_memory=False, **options):
    """As train.py builds it."""
    recompute_attention(model, save_memory)
    return PublishedStep(model, DiceCELoss(sigmoid=True, squared_pred=True), save_memory, **options)


@pytest.mark.parametrize("save_memory", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_losses_and_gradients_equal_the_published_loop(save_memory, seeded_model):
    with np.load(DATA / "golden_train_seed0.npz") as file:
        golden = dict(file)
    image = torch.cat([seeded_roi(0), seeded_roi(1)])
    truth = np.unpackbits(golden["gt_packed"]).reshape(2, 1, 128, 128, 128)
    clicks = Clicks(*(torch.from_numpy(golden[f"click_{k}"]) for k in ("coords", "labels")))
    without_point = int(np.flatnonzero(golden["without_points"])[0])
    step = step_of(seeded_model.requires_grad_(True), save_memory)
    batch = Batch(image, torch.from_numpy(truth).bool(), torch.zeros(2, ROUNDS), (), {})
    output = step.play(batch, without_point, clicks)
    (output.loss / 20).backward()
    np.testing.assert_allclose(output.round_losses, golden["per_click_loss"], rtol=1e-4)
    assert output.loss.item() == pytest.approx(float(golden["total_loss"]), rel=1e-4)
    logits = output.logits[..., ::4, ::4, ::4]
    np.testing.assert_allclose(logits, golden["final_logits_stride4"], atol=1e-4)
    parameters = dict(seeded_model.named_parameters())
    norms = [parameters[name].grad.norm().item() for name in golden["grad_names"]]
    np.testing.assert_allclose(norms, golden["grad_norms"], rtol=1e-3)
    seeded_model.zero_grad()
    recompute_attention(seeded_model, False)


def test_the_gradient_of_upscaling_is_that_of_trilinear_interpolation():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 5, 5, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    y, expected = Upscale.apply(x, 20), F.interpolate(x, size=(20,) * 3, mode="trilinear")
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    weight = torch.randn(y.shape, dtype=y.dtype, generator=generator)
    ours, theirs = (torch.autograd.grad(z, x, weight)[0] for z in (y, expected))
    torch.testing.assert_close(ours, theirs)


def play_tiny(**options):
    model = randomise(sam_model_registry3D["vit_b_ori"](**TINY)).train()
    image = torch.cat([seeded_roi(i, 32) for i in range(3)])
    truth = torch.zeros(image.shape, dtype=torch.bool)
    truth[:, :, 8:20, 5:25, 10:30] = True
    draws = torch.from_numpy(np.random.default_rng(0).random((3, ROUNDS)))
    output = step_of(model, **options).play(Batch(image, truth, draws, (), {}), without_point=4)
    output.loss.backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("multi_click", [False, True])
def test_saving_memory_changes_no_gradient(multi_click):
    (full, gradients), (saved, same) = (
        play_tiny(save_memory=save, multi_click=multi_click) for save in (False, True)
    )
    torch.testing.assert_close(full.round_losses, saved.round_losses)
    assert gradients.keys() == same.keys() and len(gradients) > 50
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient)


def test_a_step_leaves_the_network_as_it_was_given(tiny_model):
    before = [vars(module).copy() for module in tiny_model.modules()]
    PublishedStep(tiny_model, torch.nn.Identity(), save_memory=True)
    assert [vars(module) for module in tiny_model.modules()] == before


def test_the_round_without_a_point_is_one_of_2_to_8():
    rounds = Counter(round_without_point(stream(Stream.ROUNDS, 0, 3, i)) for i in range(900))
    assert set(rounds) == set(range(2, 9)) and min(rounds.values()) > 80


def test_the_rounds_without_a_point_are_the_drawn_one_and_the_last(monkeypatch):
    step = step_of(sam_model_registry3D["vit_b_ori"](**TINY))
    seen, decode = [], step.model.decode

    def record(embedding, points, mask_prompt):
        seen.append(points is None)
        return decode(embedding, points, mask_prompt=mask_prompt)

    monkeypatch.setattr(step.model, "decode", record)
    image = seeded_roi(0, 32)
    step(Batch(image, image > 0, torch.zeros(1, ROUNDS), (), {}), stream(Stream.ROUNDS, 1))
    drawn = round_without_point(stream(Stream.ROUNDS, 1))
    assert [i for i, is_without in enumerate(seen) if is_without] == [drawn, ROUNDS - 1]


def test_all_clicks_make_another_prompt_than_the_last_one():
    last, all_clicks = (play_tiny(multi_click=multi)[0] for multi in (False, True))
    assert last.round_losses[0] == all_clicks.round_losses[0]
    assert (last.round_losses[1:4] != all_clicks.round_losses[1:4]).all()
