"""An epoch of training: accumulation, gradients averaged over processes, and when to stop."""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from segment_anything.predictor3D import autocast
from utils.formats.prepared import PreparedCase
from utils.runtime.distributed import Processes
from utils.training.adaptive_step import graded_rounds
from utils.training.dataset import Batch, EpochSampler, round_without_point
from utils.training.published_step import StepOutput, dice
from utils.training.state import Progress, TrainState


class TrainingError(RuntimeError):
    """The run can't go on; the message says why."""


@dataclass
class Stop:
    """A signal handler that asks to finish the step, save and exit."""

    number: int = 0

    def __call__(self, number: int, frame: Any) -> None:
        self.number = number


@dataclass
class BadFiles:
    """Training files that can't be used: each is reported once, too many are an error.

    Attributes:
        total: Training files, good or bad.
        max_share: Of them may be bad.
        messages: By path.
    """

    total: int
    max_share: float
    messages: dict[str, str] = field(default_factory=dict)

    def add(self, messages: dict[str, str], is_printed: bool) -> None:
        for path, message in messages.items():
            if path not in self.messages and is_printed:
                print(f"SKIPPED {path}: {message}", file=sys.stderr, flush=True)
        self.messages |= messages

    @property
    def are_too_many(self) -> bool:
        return len(self.messages) > self.max_share * self.total

    def error(self) -> TrainingError:
        return TrainingError(
            f"{len(self.messages)} of {self.total} training files can't be used, more than a share "
            f"of {self.max_share:g}"
        )


def agree_on_data(cases: Sequence[PreparedCase], progress: Progress, processes: Processes) -> None:
    """Make sure that all processes, and the epoch that is resumed, are of the same cases.

    Raises:
        TrainingError: The processes differ.
        ValueError: The epoch was begun with others.
    """
    listed = json.dumps([(case.path.name, case.shape) for case in cases])
    identity = hashlib.sha256(listed.encode()).hexdigest()
    if len(set(processes.gather((identity, progress.epoch, progress.step)))) > 1:
        raise TrainingError(
            "the processes do not find the same training files and checkpoint: expected them on a "
            "shared disk"
        )
    if progress.step and progress.cases != identity:
        raise ValueError(
            f"--resume: the checkpoint lies within an epoch of other training files than the "
            f"{len(cases)} found"
        )
    progress.cases = identity


@dataclass(frozen=True)
class Loop:
    """What stays the same while training.

    Attributes:
        step: A PublishedStep or an AdaptiveStep, wrapped in DistributedDataParallel where there are
            several processes.
        batches: Makes the batches, on the device, in the order of `sampler`.
        sampler: Of this process.
        processes: This one and its peers.
        accumulation_steps: Batches per optimizer step; the last one of an epoch may have fewer.
        seed: Of the round without a point, or of those with a gradient.
        precision: One of PRECISIONS.
        bad_files: Seen so far.
        stop: Whether to.
    """

    step: nn.Module
    batches: Callable[[], Generator[Batch, None, None]]
    sampler: EpochSampler
    processes: Processes
    accumulation_steps: int
    seed: int
    precision: str
    bad_files: BadFiles
    stop: Stop


def train_epoch(loop: Loop, state: TrainState) -> bool:
    """Train on the rest of an epoch.

    Returns:
        False if a signal stopped it: `state` is that after the last optimizer step.

    Raises:
        TrainingError: A loss is not finite, or too many files are bad.
    """
    progress, sampler = state.progress, loop.sampler
    sampler.epoch, sampler.first = progress.epoch, progress.step
    is_shown = loop.processes.rank == 0 and sys.stderr.isatty()
    bar = tqdm(
        desc=f"epoch {progress.epoch}",
        initial=progress.step,
        total=len(sampler),
        unit="batch",
        disable=not is_shown,
    )
    sums = np.zeros(2)  # of loss and Dice since the last optimizer step
    names: tuple[str, ...] = ()  # of the cases since then
    with bar, closing(loop.batches()) as batches:
        for index, batch in enumerate(batches, progress.step):
            begin = index - index % loop.accumulation_steps
            window = min(loop.accumulation_steps, len(sampler) - begin)
            is_last = index == begin + window - 1
            output = _train_step(loop, state, batch, index, window, is_last)
            means, is_stopped = _compare(loop, state, batch, output)
            sums += means
            bar.set_postfix(loss=f"{means[0]:.3f}", refresh=False)
            bar.update()
            names += batch.names
            if is_last:
                _check_gradients(state, names)
                state.scaler.step(state.optimizer)
                state.scaler.update()
                state.optimizer.zero_grad()
                progress.step = index + 1
                progress.loss_sum += float(sums[0])
                progress.dice_sum += float(sums[1])
                sums[:], names = 0, ()
            if is_stopped:
                state.optimizer.zero_grad()  # what the window has so far is computed again
                return False
    return True


def _compare(
    loop: Loop, state: TrainState, batch: Batch, output: StepOutput
) -> tuple[tuple[float, float], bool]:
    """Mean loss and Dice of the processes, and whether one of them is to stop.

    Raises:
        TrainingError: In all of them alike.
    """
    processes = loop.processes
    loss = output.loss.item()
    flags = (not math.isfinite(loss), len(batch.failures) > 0, loop.stop.number != 0)
    values = [loss, dice(output.logits, batch.truth).mean().item(), *map(float, flags)]
    loss_sum, dice_sum, is_bad, has_failures, is_stopped = processes.sum(values)
    if has_failures:
        for failures in processes.gather(batch.failures):
            loop.bad_files.add(failures, processes.rank == 0)
    if loop.bad_files.are_too_many:
        raise loop.bad_files.error()
    if is_bad:
        names = [name for names in processes.gather(batch.names) for name in names]
        raise TrainingError(
            f"the loss is not finite in epoch {state.progress.epoch}, on the cases "
            f"{', '.join(names)}"
        )
    return (loss_sum / processes.count, dice_sum / processes.count), is_stopped > 0


def _check_gradients(state: TrainState, names: tuple[str, ...]) -> None:
    """Before they reach the weights, and these the last good checkpoint; a scaler skips such steps.

    Raises:
        TrainingError: They are not finite, alike in all processes.
    """
    if state.scaler.is_enabled():
        return
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    if not torch.nn.utils.get_total_norm(gradients).isfinite():
        raise TrainingError(
            f"the gradient is not finite in epoch {state.progress.epoch}, after the cases "
            f"{', '.join(names)}"
        )


def _train_step(
    loop: Loop, state: TrainState, batch: Batch, index: int, window: int, is_last: bool
) -> StepOutput:
    """Forward and backward of the batch `index` of an epoch, one of `window` batches."""
    at = (loop.seed, state.progress.epoch, index)
    how: tuple[Any, ...] = (round_without_point(*at),)
    if batch.start:
        how = (*batch.start, graded_rounds(*at))
    synchronised: AbstractContextManager = nullcontext()
    if isinstance(loop.step, DistributedDataParallel) and not is_last:
        synchronised = loop.step.no_sync()
    with synchronised:
        with autocast(loop.processes.device, loop.precision):
            output = loop.step(batch.image, batch.truth, batch.draws, *how)
        state.scaler.scale(output.loss / window).backward()
    return output
