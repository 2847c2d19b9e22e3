"""What is noted of an epoch: its row of the log, its validation, which checkpoints it is worth."""

from pathlib import Path
from typing import Any

from utils.inference.method import make_segmenter
from utils.runtime.memory import peak_gb
from utils.training.epoch import Loop
from utils.training.log import VALIDATION
from utils.training.state import DICE_BEST, LATEST, LOSS_BEST, TrainState
from utils.training.validation import validate


def finish_epoch(
    state: TrainState, loop: Loop, seconds: float, batches: int, is_validated: bool
) -> tuple[str, ...]:
    """Bring the records up to date.

    Args:
        state: After the last batch of an epoch.
        loop: That trained it.
        seconds: That this took, for `batches` of it, the others having been before a resumption.
        batches: Of this process.
        is_validated: In some epochs, so that these decide which is the best.

    Returns:
        The checkpoints that are to be written.
    """
    progress, processes = state.progress, loop.processes
    loss, dice = (total / len(loop.sampler) for total in (progress.loss_sum, progress.dice_sum))
    samples = batches * loop.sampler.batch_size * processes.count
    row: dict[str, Any] = {
        "epoch": progress.epoch,
        "loss": loss,
        "dice": dice,
        "lr": state.scheduler.get_last_lr()[0],
        "seconds": round(seconds, 1),
        "samples_per_second": round(samples / seconds, 3),
        "peak_gb": round(peak_gb(processes.device.type), 2),
    }
    progress.log.append(row)
    progress.losses.append(loss)
    progress.dices.append(dice)
    state.scheduler.step()
    progress.epoch += 1
    progress.step, progress.loss_sum, progress.dice_sum = 0, 0.0, 0.0
    names = [LATEST]
    if loss < progress.best_loss:
        progress.best_loss = loss
        names.append(LOSS_BEST)
    if not is_validated and dice > progress.best_dice:
        progress.best_dice = dice
        names.append(DICE_BEST)
    return tuple(names)


def validate_epoch(state: TrainState, loop: Loop, cases: Path) -> tuple[str, ...] | None:
    """Add a validation on a folder of cases to the last row of the log, unless it is there.

    Returns:
        The checkpoints that are to be written; None if a signal stopped it.
    """
    progress = state.progress
    if not progress.log or VALIDATION[0] in progress.log[-1]:
        return ()
    segment = make_segmenter(state.model, state.policy, state.settings, precision=loop.precision)
    means = validate(
        state.model,
        segment,
        sorted(cases.rglob("*.npz")),
        loop.processes,
        lambda: loop.stop.number != 0,
    )
    if means is None:
        return None
    progress.log[-1] |= means
    if means.get(VALIDATION[1], 0.0) <= progress.best_dice:
        return (LATEST,)
    progress.best_dice = means[VALIDATION[1]]
    return LATEST, DICE_BEST
