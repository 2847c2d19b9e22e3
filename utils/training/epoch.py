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

READ_EVERY = 16  # batches on a GPU, between two readings of the losses


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
    tally = Tally(run, state)
    bar = tqdm(
        desc=f"epoch {progress.epoch}",
        initial=first,
        total=len(sampler),
        unit="batch",
        disable=processes.rank > 0 or not sys.stderr.isatty(),
    )
    with bar:
        for index, batch in enumerate(run.loader, first):
            batch = batch.to(processes.device)
            begin = index - index % run.accumulation_steps
            window = min(run.accumulation_steps, len(sampler) - begin)
            is_last = index == begin + window - 1
            output = _forward_backward(run, state, batch, index, window, is_last)
            tally.add(batch, output, is_last)
            is_stopped = _agree(run, batch)
            if tally.is_due:
                tally.read()
                bar.set_postfix(loss=f"{progress.loss_sum / max(progress.step, 1):.3f}")
            bar.update()
            if is_last:
                state.scaler.step(state.optimizer)
                state.scaler.update()
                state.optimizer.zero_grad()
                progress.step = index + 1
                tally.finish_window()
            if is_stopped:
                tally.read()
                state.optimizer.zero_grad()  # what the window has so far is computed again
                raise Stopped
        tally.read()
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


def _agree(run: Run, batch: Batch) -> bool:
    """Note the failures of all processes; True if one of them is to stop. Waits for no GPU.

    Raises:
        TrainingError: There are too many failures; in all processes alike.
    """
    processes = run.processes
    flags = [float(len(batch.failures) > 0), float(run.stop.number != 0)]
    has_failures, is_stopped = processes.sum(flags)
    if has_failures:
        for failures in processes.gather(batch.failures):
            run.bad_files.add(failures, processes.rank == 0)
        run.bad_files.check()
    return is_stopped > 0


class Tally:
    """Losses and Dice of an epoch, summed where they are made and read from time to time.

    A GPU would wait at each reading, since the host can give it nothing to do before it knows. What
    is not finite is noticed at the next reading, which comes before anything is saved; on a CPU
    also before the weights change.
    """

    def __init__(self, run: Run, state: TrainState) -> None:
        self._run, self._state = run, state
        device = run.processes.device
        self._read_every = 1 if device.type == "cpu" else READ_EVERY
        # Loss and Dice of the batches of windows that are finished, and of the one that is not.
        self._finished, self._window = torch.zeros(2, 2, device=device, dtype=torch.float64)
        self._gradients = torch.zeros((), device=device, dtype=torch.float64)  # sum of their norms
        self._names: list[str] = []  # the cases since the last reading
        self._batches = 0

    def add(self, batch: Batch, output: StepOutput, is_last: bool) -> None:
        """A batch, the last of its window or not; then the gradients are looked at, too.

        A scaler looks at gradients itself, and skips what is not finite.
        """
        values = torch.stack([output.loss.detach(), dice(output.logits, batch.truth).mean()])
        self._window += values
        self._names += batch.names
        self._batches += 1
        if is_last and not self._state.scaler.is_enabled():
            gradients = [p.grad for p in self._state.model.parameters() if p.grad is not None]
            self._gradients += torch.nn.utils.get_total_norm(gradients)

    @property
    def is_due(self) -> bool:
        """True if it should be read."""
        return self._batches >= self._read_every

    def finish_window(self) -> None:
        """The optimizer has made its step."""
        self._finished += self._window
        self._window.zero_()

    def read(self) -> None:
        """Add what is finished to the progress.

        Raises:
            TrainingError: A loss or a gradient is not finite; in all processes alike.
        """
        progress, processes = self._state.progress, self._run.processes
        values = [*self._finished, self._window[0], self._gradients]
        loss, score, open_loss, gradients = torch.stack(values).tolist()
        is_bad = [not math.isfinite(value) for value in (loss + open_loss, gradients)]
        losses_bad, gradients_bad = processes.sum([float(flag) for flag in is_bad])
        if losses_bad or gradients_bad:
            what = "the gradient is not finite in epoch"
            if losses_bad:
                what = "the loss is not finite in epoch"
            names = [name for names in processes.gather(self._names) for name in names]
            raise TrainingError(f"{what} {progress.epoch}, on the cases {', '.join(names)}")
        loss, score = processes.sum([loss, score])
        progress.loss_sum += loss / processes.count
        progress.dice_sum += score / processes.count
        self._finished.zero_()
        self._names, self._batches = [], 0
