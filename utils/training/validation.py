"""The official protocol while training: no files, no report, means only."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from segment_anything import Sam3D
from utils.evaluation.metrics import auc
from utils.evaluation.protocol import RoundInput, RoundOutput, play
from utils.evaluation.report.results import collect
from utils.formats.case import Case, read_labelled_case
from utils.runtime.distributed import Processes
from utils.training.log import VALIDATION


def validate(
    model: Sam3D,
    segment: Callable[[Case], np.ndarray],
    paths: list[Path],
    processes: Processes,
    is_stopped: Callable[[], bool],
) -> dict[str, float] | None:
    """Play the protocol; the processes share the cases.

    Args:
        model: In training mode, before and after.
        segment: Predicts with it.
        paths: Cases with gts. One that fails is named and left out.
        processes: All of which call this.
        is_stopped: Whether to leave the rest.

    Returns:
        Means over the cases of what VALIDATION names, nothing if all failed; None if one of the
        processes was stopped.
    """

    def predict(request: RoundInput) -> RoundOutput:
        return RoundOutput(segment(request.case), 0.0)

    rows = []
    model.eval()
    for path in paths[processes.rank :: processes.count]:
        if is_stopped():
            break
        try:
            labelled = read_labelled_case(path)
            result = collect(path.name, labelled, [r for r, _ in play(labelled, predict, math.inf)])
        except (OSError, ValueError, RuntimeError) as error:
            print(f"NOT VALIDATED {path}: {error}", file=sys.stderr, flush=True)
            continue
        curve = result.curve("DSC")
        rows.append((curve[0 if result.has_boxes else 1], curve[-1], auc(curve)))
    model.train()
    if processes.sum([float(is_stopped())])[0]:
        return None
    every = [row for part in processes.gather(rows) for row in part]
    return dict(zip(VALIDATION, np.mean(every, axis=0).tolist(), strict=True)) if every else {}
