"""An epoch of training: accumulation, gradients averaged over processes, and when to stop."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from utils.runtime.memory import peak_gb
from utils.training.batch import Batch
from utils.training.dataset import EpochSampler
from utils.training.state import Progress, TrainState
from utils.training.step import StepOutput, dice
from utils.training.streams import Stream, stream


class TrainingError(RuntimeError):
    """The run can't go on; the message says why."""


class Stopped(Exception):
    """A signal asked to stop; all processes raise it together."""


@dataclass
class Stop:
    """A signal handler that asks to finish the step, save and exit.

    Attributes:
        number: The last signal, 0 before one came.
    """

    number: int = 0

    def __call__(self, number: int, frame: Any) -> None:
        self.number = number


@dataclass
class BadFiles:
    """Training files that can't be used: each is reported once, too many are an error.

    Attributes:
        total: Training files, good or bad.
        max_share: The share of them that may be bad.
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

    def check(self) -> None:
        """Raises TrainingError if they are too many."""
        if len(self.messages) > self.max_share * self.total:
            raise TrainingError(
                f"{len(self.messages)} of {self.total} training files can't be used, more than a "
                f"share of {self.max_share:g}"
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
class Run:
    """What stays the same while training.

    Attributes:
        step: A TrainingStep, wrapped in DistributedDataParallel where there are several processes.
        loader: Makes the batches, in the order of `sampler`.
        sampler: That of this process.
        processes: This one and its peers.
        accumulation_steps: Batches per optimizer step; the last one of an epoch may have fewer.
        seed: For what the samples of a step have in common.
        precision: One of PRECISIONS.
        bad_files: Those seen so far.
        stop: Knows whether a signal came.
    """

    step: nn.Module
    loader: Iterable[Batch]
    sampler: EpochSampler
    processes: Processes
    accumulation_steps: int
    seed: int
    precision: str
    bad_files: BadFiles
    stop: Stop


def train_one_epoch(run: Run, state: TrainState) -> dict[str, float]:
    """Train on what is left of an epoch, which may be nothing.

    Returns:
        For its row of the log: mean loss and Dice of the whole epoch, learning rate, and the cost
        of the part that was trained here.

    Raises:
        Stopped: A signal came. `state` is that after the last optimizer step.
        TrainingError: A loss or a gradient is not finite, or too many files are bad.
    """
    progress, sampler, processes = state.progress, run.sampler, run.processes
    start, first = time.perf_counter(), progress.step
    sampler.epoch, sampler.first = progress.epoch, first
    bar = tqdm(
        desc=f"epoch {progress.epoch}",
        initial=first,
        total=len(sampler),
        unit="batch",
        disable=processes.rank > 0 or not sys.stderr.isatty(),
    )
    sums = np.zeros(2)  # of loss and Dice since the last optimizer step
    names: tuple[str, ...] = ()  # of the cases since then
    with bar:
        for index, batch in enumerate(run.loader, first):
            batch = batch.to(processes.device)
            begin = index - index % run.accumulation_steps
            window = min(run.accumulation_steps, len(sampler) - begin)
            is_last = index == begin + window - 1
            output = _forward_backward(run, state, batch, index, window, is_last)
            means, is_stopped = _compare(run, state, batch, output)
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
                raise Stopped
    seconds = time.perf_counter() - start
    samples = (len(sampler) - first) * sampler.batch_size * processes.count
    return {
        "loss": progress.loss_sum / len(sampler),
        "dice": progress.dice_sum / len(sampler),
        "lr": float(state.scheduler.get_last_lr()[0]),
        "seconds": round(seconds, 1),
        "samples_per_second": round(samples / seconds, 3),
        "peak_gb": round(peak_gb(processes.device.type), 2),
    }


def _forward_backward(
    run: Run, state: TrainState, batch: Batch, index: int, window: int, is_last: bool
) -> StepOutput:
    """Add the gradients of the batch `index` of an epoch, one of `window` batches."""
    rng = stream(Stream.ROUNDS, run.seed, state.progress.epoch, index)
    synchronised: AbstractContextManager = nullcontext()
    if isinstance(run.step, DistributedDataParallel) and not is_last:
        synchronised = run.step.no_sync()
    with synchronised:
        with autocast(run.processes.device, run.precision):
            output = run.step(batch, rng)
        state.scaler.scale(output.loss / window).backward()
    return output


def _compare(
    run: Run, state: TrainState, batch: Batch, output: StepOutput
) -> tuple[tuple[float, float], bool]:
    """Mean loss and Dice of the processes, and whether one of them is to stop.

    Raises:
        TrainingError: In all of them alike.
    """
    processes = run.processes
    loss = output.loss.item()
    flags = (not math.isfinite(loss), len(batch.failures) > 0, run.stop.number != 0)
    values = [loss, dice(output.logits, batch.truth).mean().item(), *map(float, flags)]
    loss_sum, dice_sum, is_bad, has_failures, is_stopped = processes.sum(values)
    if has_failures:
        for failures in processes.gather(batch.failures):
            run.bad_files.add(failures, processes.rank == 0)
        run.bad_files.check()
    if is_bad:
        names = [name for names in processes.gather(batch.names) for name in names]
        raise TrainingError(
            f"the loss is not finite in epoch {state.progress.epoch}, on the cases "
            f"{', '.join(names)}"
        )
    return (loss_sum / processes.count, dice_sum / processes.count), is_stopped > 0


def _check_gradients(state: TrainState, names: tuple[str, ...]) -> None:
    """Keep what is not finite from the weights, and these from the last good checkpoint.

    A scaler skips such steps itself.

    Raises:
        TrainingError: The gradients are not finite, alike in all processes.
    """
    if state.scaler.is_enabled():
        return
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    if not torch.nn.utils.get_total_norm(gradients).isfinite():
        raise TrainingError(
            f"the gradient is not finite in epoch {state.progress.epoch}, after the cases "
            f"{', '.join(names)}"
        )
