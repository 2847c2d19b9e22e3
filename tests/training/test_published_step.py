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
from utils.training.published_step import ROUNDS, Clicks, PublishedStep, random_error_click


def dice_ce() -> DiceCELoss:
    return DiceCELoss(sigmoid=True, squared_pred=True)


@pytest.mark.parametrize("save_memory", [True, False])
def test_losses_and_gradients_equal_the_published_loop(save_memory, seeded_model):
    with np.load(DATA / "golden_train_seed0.npz") as file:
        golden = dict(file)
    image = torch.cat([seeded_roi(0), seeded_roi(1)])
    truth = np.unpackbits(golden["gt_packed"]).reshape(2, 1, 128, 128, 128)
    clicks = Clicks(*(torch.from_numpy(golden[f"click_{k}"]) for k in ("coords", "labels")))
    without_point = int(np.flatnonzero(golden["without_points"])[0])
    loop = PublishedStep(seeded_model.requires_grad_(True), dice_ce(), save_memory=save_memory)
    draws = torch.zeros(2, ROUNDS)
    output = loop(image, torch.from_numpy(truth).bool(), draws, without_point, clicks)
    (output.loss / 20).backward()
    np.testing.assert_allclose(output.round_losses, golden["per_click_loss"], rtol=1e-4)
    assert output.loss.item() == pytest.approx(float(golden["total_loss"]), rel=1e-4)
    logits = output.logits[..., ::4, ::4, ::4]
    np.testing.assert_allclose(logits, golden["final_logits_stride4"], atol=1e-4)
    parameters = dict(seeded_model.named_parameters())
    norms = [parameters[name].grad.norm().item() for name in golden["grad_names"]]
    np.testing.assert_allclose(norms, golden["grad_norms"], rtol=1e-3)
    seeded_model.zero_grad()


def test_the_gradient_of_upscaling_is_that_of_trilinear_interpolation():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 5, 5, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    y, expected = Upscale.apply(x, 20), F.interpolate(x, size=(20,) * 3, mode="trilinear")
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    weight = torch.randn(y.shape, dtype=y.dtype, generator=generator)
    ours, theirs = (torch.autograd.grad(z, x, weight)[0] for z in (y, expected))
    torch.testing.assert_close(ours, theirs)


def tiny_step(**options):
    model = randomise(sam_model_registry3D["vit_b_ori"](**TINY)).train()
    image = torch.cat([seeded_roi(i, 32) for i in range(3)])
    truth = torch.zeros(image.shape, dtype=torch.bool)
    truth[:, :, 8:20, 5:25, 10:30] = True
    loop = PublishedStep(model, dice_ce(), **options)
    draws = torch.from_numpy(np.random.default_rng(0).random((3, ROUNDS)))
    output = loop(image, truth, draws, without_point=4)
    output.loss.backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("multi_click", [False, True])
def test_saving_memory_changes_no_gradient(multi_click):
    (full, gradients), (saved, same) = (
        tiny_step(save_memory=save, multi_click=multi_click) for save in (False, True)
    )
    torch.testing.assert_close(full.round_losses, saved.round_losses)
    assert gradients.keys() == same.keys() and len(gradients) > 50
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient)


def test_all_clicks_make_another_prompt_than_the_last_one():
    last, all_clicks = (tiny_step(multi_click=multi)[0] for multi in (False, True))
    assert last.round_losses[0] == all_clicks.round_losses[0]
    assert (last.round_losses[1:4] != all_clicks.round_losses[1:4]).all()


def test_a_click_is_an_error_with_the_label_of_the_truth():
    truth = torch.zeros(2, 1, 6, 6, 6, dtype=torch.bool)
    pred = truth.clone()
    truth[0, 0, 1, 2, 3] = pred[1, 0, 5, 4, 0] = True
    points, labels = random_error_click(pred, truth, torch.tensor([0.99, 0.0]))
    assert points.tolist() == [[[1, 2, 3]], [[5, 4, 0]]] and labels.tolist() == [[1], [0]]


def test_clicks_are_uniform_over_the_errors():
    truth = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    truth[..., 0, 0:3] = True
    pred = torch.zeros_like(truth)
    found = Counter(
        tuple(random_error_click(pred, truth, torch.tensor([draw]))[0].flatten().tolist())
        for draw in (np.arange(48) + 0.5) / 48
    )
    assert found == {tuple(map(float, index)): 4 for index in truth[0, 0].nonzero().tolist()}


def test_without_errors_any_voxel_is_clicked_as_what_it_is():
    truth = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
    truth[..., 1] = True
    for i in range(8):
        points, labels = random_error_click(truth, truth, torch.tensor([i / 8]))
        assert labels.item() == points[0, 0, 2].item()
