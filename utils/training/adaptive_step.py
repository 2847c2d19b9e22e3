"""The training step of the adaptive recipe: rounds as inference and the evaluator play them."""

from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything.modeling.sam3D import MASK_THRESHOLD
from utils.evaluation.simulated_prompts import largest_error_click
from utils.training.published_step import Clicks, PublishedStep, StepOutput, random_error_click

ADAPTIVE_ROUNDS = 6  # the first with the prompts of the sample, each other one with a click more
GRADED_ROUNDS = 3  # have a gradient: the first, and others at random; the rest leads to them
CENTRE_SHARE = 0.7  # of the clicks are the evaluator's, the others random error voxels
IOU_WEIGHT = 0.1  # of the error of the predicted IoU in the loss


class AdaptiveStep(PublishedStep):
    """Encode once, then rounds in which a click on an error joins all prompts before it.

    As in inference, the mask prompt is the prediction before, made binary: no gradient flows from
    round to round. So most rounds can do without, which is as fast as four rounds with (the idea
    is that of Sofiiuk et al., RITM, arXiv:2102.06583).
    """

    def forward(  # type: ignore[override]
        self,
        image: Tensor,
        truth: Tensor,
        draws: Tensor,
        points: Tensor,
        labels: Tensor,
        mask: Tensor,
        graded: Collection[int],
    ) -> StepOutput:
        """Predict, and correct for ADAPTIVE_ROUNDS - 1 rounds.

        Args:
            image: (B, 1, S, S, S) normalised ROIs.
            truth: The same, bool.
            draws: (B, 2 * ADAPTIVE_ROUNDS) in [0, 1): the rule and the voxel of each click.
            points: (B, N, 3) and
            labels: (B, N), what the user says at first.
            mask: (B, 1, M, M, M) of 0 and 1. Where one is not empty, it is a prediction that is to
                be corrected, and the first round has a click, too.
            graded: Rounds that have a gradient; with the first one, as autocast holds weights as
                they were cast first.
        """
        model = self.model
        embedding = model.encode(image)
        target = truth.float()
        is_begun = mask.flatten(1).any(dim=1)
        logits = F.interpolate(mask, size=image.shape[-1]) - 0.5
        losses, made = [], []
        for i in range(ADAPTIVE_ROUNDS):
            if i > 0 or is_begun.any():
                point, label = error_clicks(
                    logits > MASK_THRESHOLD, truth, draws[:, 2 * i], draws[:, 2 * i + 1]
                )
                if i == 0:
                    label = torch.where(is_begun[:, None], label, -1)
                made.append((point, label))
                points = torch.cat([points, point], dim=1)
                labels = torch.cat([labels, label], dim=1)
            with torch.set_grad_enabled(i in graded and torch.is_grad_enabled()):
                low_res_mask, iou = model.decode(embedding, (points, labels), mask_prompt=mask)
                loss, logits = self.score(low_res_mask, target)
                loss = loss + IOU_WEIGHT * F.mse_loss(iou.float(), iou_of(logits, truth))
            losses.append(loss)
            mask = (low_res_mask.detach() > MASK_THRESHOLD).float()
        clicks = Clicks(*(torch.stack(parts) for parts in zip(*made, strict=True)))
        total = torch.stack(losses)
        return StepOutput(total.sum(), total.detach(), logits, clicks)


def graded_rounds(seed: int, epoch: int, step: int) -> set[int]:
    """The rounds of a step that have a gradient."""
    rng = np.random.default_rng((seed, epoch, step))
    return {0, *(1 + rng.choice(ADAPTIVE_ROUNDS - 1, GRADED_ROUNDS - 1, replace=False)).tolist()}


def iou_of(logits: Tensor, truth: Tensor) -> Tensor:
    """Of masks (B, 1, S, S, S), the second bool and not empty -> (B, 1)."""
    pred, true = (logits > MASK_THRESHOLD).flatten(1), truth.flatten(1)
    return ((pred & true).sum(dim=1) / (pred | true).sum(dim=1))[:, None]


def error_clicks(
    pred: Tensor, truth: Tensor, rules: Tensor, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """A click on an error of each sample: in the middle of the largest one, or on a random voxel.

    Args:
        pred: (B, 1, S, S, S) bool.
        truth: The same.
        rules: (B,) in [0, 1), decides which of the two.
        draws: (B,) in [0, 1), decides which voxel.

    Returns:
        Points (B, 1, 3) float in (z, y, x) and labels (B, 1); a random voxel where all are right.
    """
    points, labels = random_error_click(pred, truth, draws)
    for i in np.flatnonzero((rules < CENTRE_SHARE).cpu().numpy()):
        click = largest_error_click(truth[i, 0].cpu().numpy(), pred[i, 0].cpu().numpy())
        if click is not None:
            points[i, 0] = torch.tensor(click.point, dtype=points.dtype)
            labels[i, 0] = int(click.is_foreground)
    return points, labels
