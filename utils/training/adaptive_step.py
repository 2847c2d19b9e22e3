"""The training step of the adaptive recipe: rounds as inference and the evaluator play them."""

from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything.modeling.sam3D import MASK_THRESHOLD
from utils.training.batch import Batch
from utils.training.clicks import Clicks, error_clicks
from utils.training.drawings import DRAWS, drawn_corrections
from utils.training.step import StepOutput, TrainingStep

ADAPTIVE_ROUNDS = 7  # two with the prompts of the sample, each other one with a click more
LOOKS = 2  # rounds with the prompts of the sample: the second one looks at the answer to the first
GRADED_ROUNDS = 3  # have a gradient: the first, and others at random; the rest leads to them
CENTRE_SHARE = 0.7  # of the clicks are the evaluator's, the others random error voxels
ROUND_DRAWS = 4 + DRAWS  # numbers in [0, 1) that decide about a round
IOU_WEIGHT = 0.1  # of the error of the predicted IoU in the loss


class AdaptiveStep(TrainingStep):
    """Encode once, then rounds in which a click on an error joins all prompts before it.

    As in inference, the mask prompt is the prediction before, made binary: no gradient flows from
    round to round. So most rounds can do without, which is as fast as four rounds with (the idea
    is that of Sofiiuk et al., RITM, arXiv:2102.06583).
    """

    def forward(self, batch: Batch, rng: np.random.Generator) -> StepOutput:
        """As TrainingStep.

        `batch.draws` (B, ADAPTIVE_ROUNDS * ROUND_DRAWS) decide, for each round, the rule of the
        click, the voxel, and whether and how something is drawn there instead.
        """
        return self.play(batch, graded_rounds(rng))

    def play(self, batch: Batch, graded: Collection[int]) -> StepOutput:
        """Predict, look again, and correct in all further rounds.

        Where a mask to begin with is not empty, these first rounds have a click, too.

        Args:
            batch: As for `forward`; it has a start.
            graded: Rounds that have a gradient; with the first one, as autocast holds weights as
                they were cast first.
        """
        assert batch.start is not None
        model, truth = self.model, batch.truth
        points, labels, mask, drawings = batch.start
        embedding = model.encode(batch.image)
        target = truth.float()
        is_begun = mask.flatten(1).any(dim=1)
        logits = F.interpolate(mask, size=batch.image.shape[-1]) - 0.5
        draws = batch.draws.unflatten(1, (ADAPTIVE_ROUNDS, ROUND_DRAWS))
        is_centred = draws[:, :, 0] < CENTRE_SHARE
        is_centred[:, :LOOKS] &= is_begun[:, None]
        drawings = None if drawings is None else drawings.float()
        losses, made = [], []
        for i in range(ADAPTIVE_ROUNDS):
            pred = logits > MASK_THRESHOLD
            point, label = error_clicks(pred, truth, draws[:, i, 1], is_centred[:, i])
            is_corrected = is_begun if i < LOOKS else torch.ones_like(is_begun)
            if drawings is not None:
                drawn, is_drawn = drawn_corrections(pred, truth, point, label, draws[:, i, 2:])
                drawings = torch.maximum(drawings, drawn * is_corrected.view(-1, 1, 1, 1, 1))
                is_corrected = is_corrected & ~is_drawn
            label = torch.where(is_corrected[:, None], label, -1)  # padding: no click
            made.append((point, label))
            points = torch.cat([points, point], dim=1)
            labels = torch.cat([labels, label], dim=1)
            with torch.set_grad_enabled(i in graded and torch.is_grad_enabled()):
                low_res_mask, iou = model.decode(
                    embedding, (points, labels), mask_prompt=mask, drawings=drawings
                )
                loss, logits = self.score(low_res_mask, target)
                loss = loss + IOU_WEIGHT * F.mse_loss(iou.float(), iou_of(logits, truth))
            losses.append(loss)
            mask = (low_res_mask.detach() > MASK_THRESHOLD).float()
        clicks = Clicks(*(torch.stack(parts) for parts in zip(*made, strict=True)))
        total = torch.stack(losses)
        return StepOutput(total.sum(), total.detach(), logits, clicks)


def graded_rounds(rng: np.random.Generator) -> set[int]:
    """The rounds of a step that have a gradient."""
    return {0, *(1 + rng.choice(ADAPTIVE_ROUNDS - 1, GRADED_ROUNDS - 1, replace=False)).tolist()}


def iou_of(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU of logits (B, 1, S, S, S) and a bool truth -> (B, 1); 0 where both are empty."""
    pred, true = (logits > MASK_THRESHOLD).flatten(1), truth.flatten(1)
    return ((pred & true).sum(dim=1) / (pred | true).sum(dim=1).clamp(min=1))[:, None]
