"""What a training run leaves to look at: log.csv, Loss.png, Dice.png, rows for TensorBoard."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.formats.atomic import atomic_write

# Of log.csv; those of the validation are empty in epochs without one. Mean DSC over the cases
# after the first round, after the last one, and the area under its curve.
VALIDATION = ("val_DSC_first", "val_DSC_Final", "val_DSC_AUC")
COLUMNS = ("epoch", "loss", "dice", "lr", "seconds", "samples_per_second", "peak_gb", *VALIDATION)


def write_log(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write log.csv and the curves, whole or not at all.

    Args:
        folder: Where to.
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
    """A curve for each of the columns `lines` that has values, over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

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
    """Writes a row of the log for TensorBoard, where that is installed."""
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
