"""The training step of the published recipe: rounds of a click, a decoder pass and a loss."""

import numpy as np
import torch
import torch.nn as nn

from segment_anything.modeling.sam3D import MASK_THRESHOLD, Sam3D
from utils.training.batch import Batch
from utils.training.clicks import Clicks, random_error_click
from utils.training.step import StepOutput, TrainingStep

ROUNDS = 11  # as published
# One round among these, and the last one, get no point: the mask prompt alone has to do.
FIRST_WITHOUT_POINT, LAST_WITHOUT_POINT = 2, 8


class PublishedStep(TrainingStep):
    """Encode once, then rounds with one random error voxel each and the logits of the round before.

    Args:
        model, loss, save_memory: See TrainingStep.
        multi_click: Prompt with all clicks so far instead of the last one.
    """

    def __init__(
        self,
        model: Sam3D,
        loss: nn.Module,
        save_memory: bool = True,
        multi_click: bool = False,
    ) -> None:
        super().__init__(model, loss, save_memory)
        self.multi_click = multi_click

    def forward(self, batch: Batch, rng: np.random.Generator) -> StepOutput:
        """As TrainingStep; `batch.draws` (B, ROUNDS) decide which error voxel is clicked."""
        return self.play(batch, round_without_point(rng))

    def play(self, batch: Batch, without_point: int, clicks: Clicks | None = None) -> StepOutput:
        """Correct the ROIs for ROUNDS rounds.

        Args:
            batch: As for `forward`.
            without_point: The round, beside the last, that gets no point.
            clicks: Made before, to be repeated instead.
        """
        model, truth = self.model, batch.truth
        embedding = model.encode(batch.image)
        mask_prompt = batch.image.new_zeros(len(truth), 1, *[model.mask_size] * 3)
        pred = torch.zeros_like(truth)
        target = truth.float()
        points, labels, losses = [], [], []
        logits = target  # replaced in each round
        for i in range(ROUNDS):
            if clicks is None:
                point, label = random_error_click(pred, truth, batch.draws[:, i])
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


def round_without_point(rng: np.random.Generator) -> int:
    """The round of a step, beside the last, that gets no point."""
    return int(rng.integers(FIRST_WITHOUT_POINT, LAST_WITHOUT_POINT, endpoint=True))
