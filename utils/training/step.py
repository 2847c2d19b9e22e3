"""What the training steps of both recipes share: the interface and the loss."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from segment_anything.modeling.image_encoder3D import Attention
from segment_anything.modeling.sam3D import MASK_THRESHOLD, Sam3D
from utils.training.batch import Batch
from utils.training.clicks import Clicks


@dataclass(frozen=True)
class StepOutput:
    """What a step returns.

    Attributes:
        loss: Sum over the rounds.
        round_losses: (rounds,), detached.
        logits: (B, 1, S, S, S) after the last round, detached.
        clicks: As they were made.
    """

    loss: Tensor
    round_losses: Tensor
    logits: Tensor
    clicks: Clicks


class TrainingStep(nn.Module):
    """All rounds of a step in one forward pass, so that DistributedDataParallel sees them.

    Args:
        model: The network.
        loss: Takes logits and truth, both (B, 1, S, S, S), and returns a scalar.
        save_memory: Compute what a round keeps for its gradients at ROI size anew in the backward
            pass; the gradients are the same. See also `recompute_attention`.
    """

    def __init__(self, model: Sam3D, loss: nn.Module, save_memory: bool = True) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.save_memory = save_memory

    def forward(self, batch: Batch, rng: np.random.Generator) -> StepOutput:
        """Play the rounds.

        Args:
            batch: Samples of the recipe.
            rng: Decides what all samples of the step have in common, in all processes alike.
        """
        raise NotImplementedError

    def score(self, low_res_mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of a round, and its logits (B, 1, S, S, S), detached."""
        if self.save_memory and torch.is_grad_enabled():
            return checkpoint(
                self._score, low_res_mask, target, use_reentrant=False, preserve_rng_state=False
            )
        return self._score(low_res_mask, target)

    def _score(self, low_res_mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model.upscale(low_res_mask)
        return self.loss(logits, target), logits.detach()


def recompute_attention(model: Sam3D, is_on: bool) -> None:
    """Compute the attention of the image encoder anew in the backward pass, or keep it.

    The gradients are the same; the attention is most of what a transformer block keeps for them.
    """
    for module in model.image_encoder.modules():
        if isinstance(module, Attention):
            module.save_memory = is_on


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice of logits (B, 1, S, S, S) and a truth of that shape, bool and not empty -> (B,)."""
    pred = (logits > MASK_THRESHOLD).flatten(1)
    true = truth.flatten(1)
    return 2 * (pred & true).sum(dim=1) / (pred.sum(dim=1) + true.sum(dim=1))
