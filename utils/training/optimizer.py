"""Optimizers and schedules: AdamW as published, and Muon beside it.

Muon is Jordan et al., 2024, https://kellerjordan.github.io/posts/muon.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import AdamW, Optimizer, lr_scheduler

from segment_anything import Sam3D

OPTIMIZERS = ("adamw", "muon")
SCHEDULERS = ("multisteplr", "steplr", "coswarm", "linear")
PROMPT_AND_DECODER_LR = 0.1  # of the image encoder's, as published for fine-tuning

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)  # Jordan's quintic: singular values to about 1
STEPS = 5  # of it
RMS = 0.2  # of an update's elements, as AdamW's are (Liu et al., arXiv:2502.16982)
MIN_SIDE = 16  # of a matrix; thinner ones, such as the last layer's, are left to AdamW


def matrices(module: nn.Module) -> list[Tensor]:
    """The weights of linear layers and convolutions that Muon is for.

    A convolution's kernel counts as a matrix of output channels and all else.
    """
    layers = (m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv3d))
    weights = (layer.weight for layer in layers)
    return [w for w in weights if min(w.flatten(1).shape) >= MIN_SIDE]


class MuonAdamW(AdamW):
    """AdamW, but groups with `is_matrices` get Muon's updates, which need a state half as large.

    An update is the momentum with all its singular values brought to about 1, so that rare
    directions are learned as fast as common ones. torch.optim.Muon takes no kernels of
    convolutions, and no groups for AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            if not group.get("is_matrices"):
                continue
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.zeros(())  # AdamW reads no state without
                    state["momentum"] = torch.zeros_like(weight)
                state["step"] += 1
                state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
                update = orthogonalised(weight.grad.lerp(state["momentum"], MOMENTUM).flatten(1))
                size = RMS * max(update.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.view_as(weight), alpha=-group["lr"] * size)
                weight.grad = None  # AdamW passes over it
        return super().step(closure)


def orthogonalised(matrix: Tensor) -> Tensor:
    """(M, N) -> the same singular vectors, with singular values of about 1 (0.7 to 1.2)."""
    a, b, c = NEWTON_SCHULZ
    is_tall = len(matrix) > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def make_optimizer(
    model: Sam3D,
    lr: float,
    weight_decay: float,
    others_lr: float = PROMPT_AND_DECODER_LR,
    name: str = "adamw",
) -> Optimizer:
    """AdamW with the published groups, in the published order; or Muon beside it.

    Args:
        model: To be trained.
        lr: Learning rate of the image encoder.
        weight_decay: For all parts alike.
        others_lr: Learning rate of prompt encoder and mask decoder, over `lr`.
        name: One of OPTIMIZERS.
    """
    assert name in OPTIMIZERS, name
    others = {"lr": others_lr * lr}
    parts: list[tuple[nn.Module, dict[str, Any]]] = [
        (model.image_encoder, {}),
        (model.prompt_encoder, others),
        (model.mask_decoder, others),
    ]
    common: dict[str, Any] = {"lr": lr, "betas": (0.9, 0.999), "weight_decay": weight_decay}
    common["fused"] = (
        model.device.type == "cuda" or None
    )  # one kernel for all; None: as torch has it
    if name == "adamw":
        return AdamW([{"params": list(part.parameters()), **how} for part, how in parts], **common)
    groups: list[dict[str, Any]] = []
    for part, how in parts:
        chosen = matrices(part)
        ids = {id(weight) for weight in chosen}
        rest = [parameter for parameter in part.parameters() if id(parameter) not in ids]
        groups.append({"params": chosen, "is_matrices": True, **how})
        groups.append({"params": rest, "is_matrices": False, **how})
    return MuonAdamW([group for group in groups if group["params"]], **common)


def make_scheduler(
    optimizer: Optimizer, name: str, step_size: Sequence[int], gamma: float
) -> lr_scheduler.LRScheduler:
    """One of SCHEDULERS, stepped each epoch.

    Args:
        optimizer: As `make_optimizer` returns it.
        name: multisteplr: times gamma at each of `step_size`; steplr: every `step_size[0]`
            epochs; coswarm: a cosine that restarts every `step_size[0]` epochs; linear: from a
            tenth up to the full rate in 5 epochs.
        step_size: Epochs.
        gamma: A factor.
    """
    assert name in SCHEDULERS, name
    if name == "multisteplr":
        return lr_scheduler.MultiStepLR(optimizer, list(step_size), gamma)
    if name == "steplr":
        return lr_scheduler.StepLR(optimizer, step_size[0], gamma)
    if name == "coswarm":
        return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, step_size[0])
    return lr_scheduler.LinearLR(optimizer, 0.1)
