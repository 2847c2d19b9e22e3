"""The published training step: encode once, then rounds of a click, a decoder pass and a loss."""

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from segment_anything.modeling.image_encoder3D import Attention
from segment_anything.modeling.sam3D import MASK_THRESHOLD, Sam3D

ROUNDS = 11  # as published
# One round among these, and the last one, get no point: the mask prompt alone has to do.
FIRST_WITHOUT_POINT, LAST_WITHOUT_POINT = 2, 8


@dataclass(frozen=True)
class Clicks:
    """Of all rounds: points (ROUNDS, B, 1, 3), voxels in (z, y, x), and labels (ROUNDS, B, 1)."""

    points: Tensor
    labels: Tensor


@dataclass(frozen=True)
class StepOutput:
    """Of one step.

    Attributes:
        loss: Sum over the rounds.
        round_losses: (ROUNDS,), detached.
        logits: (B, 1, S, S, S) of the last round, detached.
        clicks: As they were made.
    """

    loss: Tensor
    round_losses: Tensor
    logits: Tensor
    clicks: Clicks


def random_error_click(pred: Tensor, truth: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """A voxel drawn uniformly from where masks differ, or from all where they don't.

    Args:
        pred: (B, 1, S, S, S) bool.
        truth: The same.
        draw: (B,) in [0, 1), decides which voxel.

    Returns:
        Points (B, 1, 3) float in (z, y, x) and labels (B, 1): 1 where the truth is, else 0.
    """
    errors = (pred != truth)[:, 0].flatten(2)  # (B, S, S * S), plane by plane
    errors |= ~errors.flatten(1).any(dim=1)[:, None, None]
    counts = errors.count_nonzero(dim=2)
    until = counts.cumsum(dim=1)  # errors up to each plane, with it
    rank = (draw.to(until.device) * until[:, -1]).long()[:, None]  # (B, 1)
    z = torch.searchsorted(until, rank, right=True)
    plane = errors.gather(1, z[..., None].expand(-1, -1, errors.shape[2]))[:, 0]
    rank = rank - (until - counts).gather(1, z)
    index = torch.searchsorted(plane.cumsum(dim=1), rank, right=True)
    labels = truth[:, 0].flatten(1).gather(1, z * plane.shape[1] + index).long()
    size = truth.shape[-1]
    return torch.stack([z, index // size, index % size], dim=-1).float(), labels


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Of masks (B, 1, S, S, S), the second bool and not empty -> (B,)."""
    pred = (logits > MASK_THRESHOLD).flatten(1)
    true = truth.flatten(1)
    return 2 * (pred & true).sum(dim=1) / (pred.sum(dim=1) + true.sum(dim=1))


class PublishedStep(nn.Module):
    """The whole step as one module, so that DistributedDataParallel sees its forward pass.

    Args:
        model: The network.
        loss: Of logits and truth, both (B, 1, S, S, S) -> scalar.
        multi_click: Prompt with all clicks so far instead of the last one.
        save_memory: Compute what a round keeps for its gradients at ROI size anew in the backward
            pass, and the attention of the image encoder: the same gradients.
    """

    def __init__(
        self,
        model: Sam3D,
        loss: nn.Module,
        multi_click: bool = False,
        save_memory: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.multi_click = multi_click
        self.save_memory = save_memory
        for module in model.image_encoder.modules():
            if isinstance(module, Attention):
                module.save_memory = save_memory

    def forward(
        self,
        image: Tensor,
        truth: Tensor,
        draws: Tensor,
        without_point: int,
        clicks: Clicks | None = None,
    ) -> StepOutput:
        """Encode the ROIs, and correct them for ROUNDS rounds.

        Args:
            image: (B, 1, S, S, S) normalised ROIs.
            truth: The same, bool.
            draws: (B, ROUNDS) in [0, 1): which error voxel is clicked.
            without_point: The round, beside the last, that gets no point.
            clicks: Made before, to be repeated instead.
        """
        model = self.model
        embedding = model.encode(image)
        mask_prompt = image.new_zeros(len(image), 1, *[model.mask_size] * 3)
        pred = torch.zeros_like(truth)
        target = truth.float()
        points, labels, losses = [], [], []
        logits = target  # replaced in each round
        for i in range(ROUNDS):
            if clicks is None:
                point, label = random_error_click(pred, truth, draws[:, i])
            else:
                point, label = clicks.points[i].float(), clicks.labels[i]
            points.append(point)
            labels.append(label)
            prompt = (point, label)
            if self.multi_click:
                prompt = (torch.cat(points, dim=1), torch.cat(labels, dim=1))
            is_without = i in (without_point, ROUNDS - 1)
            low_res_mask, _ = model.decode(
                embedding, None if is_without else prompt, mask_prompt=mask_prompt
            )
            loss, logits = self.score(low_res_mask, target)
            losses.append(loss)
            pred = logits > MASK_THRESHOLD
            mask_prompt = low_res_mask
        made = Clicks(torch.stack(points), torch.stack(labels))
        total = torch.stack(losses)
        return StepOutput(total.sum(), total.detach(), logits, made)

    def score(self, low_res_mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of a round, and its logits (B, 1, S, S, S), detached."""
        if self.save_memory and torch.is_grad_enabled():
            return checkpoint(
                self._loss, low_res_mask, target, use_reentrant=False, preserve_rng_state=False
            )
        return self._loss(low_res_mask, target)

    def _loss(self, low_res_mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model.upscale(low_res_mask)
        return self.loss(logits, target), logits.detach()
