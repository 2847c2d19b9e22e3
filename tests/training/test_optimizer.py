"""Muon: which weights get it, its updates, and that AdamW's are as before."""

import copy

import pytest
import torch
import torch.nn as nn
from torch.optim import AdamW

from segment_anything import sam_model_registry3D
from utils.training.optimizer import RMS, MuonAdamW, make_optimizer, matrices, orthogonalised


@pytest.mark.parametrize("shape", [(16, 100), (100, 16), (40, 40)])
def test_singular_values_become_about_one_and_vectors_stay(shape):
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -1, len(v))) @ v
    around = u.T @ orthogonalised(1e-3 * matrix) @ v.T
    assert ((around.diag() > 0.6) & (around.diag() < 1.25)).all()
    torch.testing.assert_close(around, torch.diag(around.diag()), atol=1e-3, rtol=0)


def test_a_zero_gradient_is_no_update():
    assert not orthogonalised(torch.zeros(16, 20)).any()


def test_layers_have_matrices_but_thin_ones_norms_and_positions_are_not():
    model = sam_model_registry3D["hybrid_s"]()
    chosen = {id(weight) for weight in matrices(model)}
    names = {name: id(p) in chosen for name, p in model.named_parameters()}
    assert names["image_encoder.stem.1.layers.2.weight"]  # a kernel
    assert names["mask_decoder.blocks.0.attn.q_proj.weight"]
    assert not names["mask_decoder.mask_head.2.weight"]  # 8 rows
    assert not any(
        is_chosen
        for name, is_chosen in names.items()
        if name.endswith("bias") or "norm" in name or "pos_embed" in name or name.endswith(".pe")
    )


def test_a_step_is_muons_for_kernels_and_adamws_for_the_rest():
    torch.manual_seed(0)
    conv = nn.Conv3d(16, 24, kernel_size=3)
    other = copy.deepcopy(conv)
    groups = [
        {"params": [conv.weight], "is_matrices": True},
        {"params": [conv.bias], "is_matrices": False},
    ]
    muon = MuonAdamW(groups, lr=0.01, weight_decay=0.1)
    adamw = AdamW(other.parameters(), lr=0.01, weight_decay=0.1)
    before = conv.weight.detach().clone()
    for module, optimizer in ((conv, muon), (other, adamw)):
        module(torch.ones(1, 16, 4, 4, 4)).square().sum().backward()
        gradient = module.weight.grad
        optimizer.step()
    torch.testing.assert_close(conv.bias, other.bias)
    update = (conv.weight.detach() - (1 - 0.01 * 0.1) * before).flatten(1) / 0.01
    expected = -RMS * (27 * 16) ** 0.5 * orthogonalised(gradient.flatten(1))
    torch.testing.assert_close(update, expected, rtol=1e-3, atol=1e-4)
    assert set(muon.state[conv.weight]) == {"step", "momentum"}


def test_a_saved_state_goes_on_alike():
    def step(model, optimizer, seed):
        volume = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(seed))
        model.encode(volume)[2].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    model = sam_model_registry3D["hybrid_s"](img_size=16)
    optimizer = make_optimizer(model, 1e-3, 0.1, name="muon")
    step(model, optimizer, 1)
    again = copy.deepcopy(model)
    resumed = make_optimizer(again, 1e-3, 0.1, name="muon")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, by in ((model, optimizer), (again, resumed)):
        step(each, by, 2)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_all_parameters_are_optimised_once_at_the_rates_of_their_parts():
    model = sam_model_registry3D["hybrid_s"](img_size=16)
    optimizer = make_optimizer(model, 1e-3, 0.1, others_lr=0.5, name="muon")
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert len(rates) == count == len(list(model.parameters()))
    assert {rates[id(p)] for p in model.image_encoder.parameters()} == {1e-3}
    assert {rates[id(p)] for p in model.mask_decoder.parameters()} == {5e-4}
