"""What is noted of an epoch: its row of the log, validation, curves, and the best checkpoints."""

import csv
import io
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.evaluation.metrics import auc
from utils.evaluation.protocol import RoundInput, RoundOutput, play
from utils.evaluation.report.results import collect
from utils.formats.atomic import atomic_write
from utils.formats.case import read_labelled_case
from utils.inference.method import make_segmenter
from utils.training.epoch import Run, Stopped
from utils.training.state import DICE_BEST, LATEST, LOSS_BEST, TrainState

# Columns of log.csv; those of the validation are empty in epochs without one. Mean DSC over the
# cases after the first round, after the last one, and the area under its curve.
VALIDATION = ("val_DSC_first", "val_DSC_Final", "val_DSC_AUC")
COLUMNS = ("epoch", "loss", "dice", "lr", "seconds", "samples_per_second", "peak_gb", *VALIDATION)


def validate(run: Run, state: TrainState, folder: Path) -> dict[str, float]:
    """Play the official protocol on the cases of a folder, which the processes share.

    A case that fails is named and left out.

    Returns:
        Means over the cases of what VALIDATION names; nothing if all failed.

    Raises:
        Stopped: A signal came.
    """
    processes, stop = run.processes, run.stop
    segment = make_segmenter(state.model, state.policy, state.settings, precision=run.precision)

    def predict(request: RoundInput) -> RoundOutput:
        return RoundOutput(segment(request.case), 0.0)

    rows = []
    state.model.eval()
    for path in sorted(folder.rglob("*.npz"))[processes.rank :: processes.count]:
        if stop.number:
            break
        try:
            labelled = read_labelled_case(path)
            result = collect(path.name, labelled, [r for r, _ in play(labelled, predict, math.inf)])
        except (OSError, ValueError, RuntimeError) as error:
            print(f"NOT VALIDATED {path}: {error}", file=sys.stderr, flush=True)
            continue
        curve = result.curve("DSC")
        rows.append((curve[0 if result.has_boxes else 1], curve[-1], auc(curve)))
    state.model.train()
    if processes.sum([float(stop.number != 0)])[0]:
        raise Stopped
    every = [row for part in processes.gather(rows) for row in part]
    return dict(zip(VALIDATION, np.mean(every, axis=0).tolist(), strict=True)) if every else {}


def finish_epoch(state: TrainState, row: dict[str, Any], is_validated: bool) -> tuple[str, ...]:
    """Note an epoch, and go on to the next one.

    Args:
        state: After the last batch of the epoch.
        row: What the log will say of it, COLUMNS or some of them.
        is_validated: Some epochs are, so that these decide which has the best Dice.

    Returns:
        The checkpoints that are to be written.
    """
    progress = state.progress
    progress.log.append(row)
    progress.losses.append(row["loss"])
    progress.dices.append(row["dice"])
    state.scheduler.step()
    progress.epoch += 1
    progress.step, progress.loss_sum, progress.dice_sum = 0, 0.0, 0.0
    names = [LATEST]
    if row["loss"] < progress.best_loss:
        progress.best_loss = row["loss"]
        names.append(LOSS_BEST)
    dice = row.get(VALIDATION[1], 0.0) if is_validated else row["dice"]
    if dice > progress.best_dice:
        progress.best_dice = dice
        names.append(DICE_BEST)
    return tuple(names)


def write_log(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write log.csv and the curves, each whole or not at all.

    Args:
        folder: That of the run.
        rows: One per epoch, COLUMNS or some of them.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(folder / "log.csv") as file:
        file.write(text.getvalue().encode())
    _plot(folder / "Loss.png", "Loss, sum over the rounds of a step", rows, {"loss": "training"})
    dice = {
        "dice": "training, after the last round",
        "val_DSC_first": "validation, first round",
        "val_DSC_Final": "validation, after 5 clicks",
    }
    _plot(folder / "Dice.png", "Dice", rows, dice)


def _plot(path: Path, title: str, rows: Sequence[dict[str, Any]], lines: dict[str, str]) -> None:
    """Draw a curve over the epochs for each of the columns `lines` that has values."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for column, label in lines.items():
        points = [(row["epoch"], row[column]) for row in rows if column in row]
        if points:
            marker = "o" if len(points) < 50 else None
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3)
    axes.set(title=title, xlabel="Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axes.set_ylim(0, 1)
        axes.legend(frameon=False, loc="lower right")
    with atomic_write(path) as file:
        figure.savefig(file, dpi=120, format="png")


def tensorboard(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that writes a row of the log for TensorBoard, where that is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return lambda row: None
    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(row: dict[str, Any]) -> None:
        for key, value in row.items():
            if key != "epoch":
                writer.add_scalar(key, value, row["epoch"])
        writer.flush()

    return write
