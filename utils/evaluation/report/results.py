"""What is kept of an evaluated case, and the tables of numbers made of it."""

import csv
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from utils.evaluation.metrics import auc
from utils.evaluation.protocol import METRICS, ROUNDS, SECONDS_PER_OBJECT, Round
from utils.evaluation.report.slices import ObjectSlices
from utils.formats.atomic import atomic_write
from utils.formats.case import LabelledCase

_SLICES = "slices_"  # of the keys of a record

MODALITIES = ("CT", "MR", "PET", "US", "Microscopy")


@dataclass(frozen=True)
class Result:
    """One evaluated case.

    Attributes:
        name: Path of the case below the folder of cases, with "/".
        labels: (objects,) what the file calls object 1, 2, ...
        has_boxes: Whether round 0 was played.
        scores: (ROUNDS, objects, METRICS); zeros in a round that was not played.
        seconds: (ROUNDS,) of the predictions.
        clicks: (ROUNDS, objects, 4) as 1 foreground, 0 background or -1 none, then z, y, x.
        failures: Why there is no prediction, for each round; "" where there is one.
    """

    name: str
    labels: np.ndarray
    has_boxes: bool
    scores: np.ndarray
    seconds: np.ndarray
    clicks: np.ndarray
    failures: tuple[str, ...]

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.name).name

    @property
    def modality(self) -> str:
        return grouping(self.name)[0]

    @property
    def dataset(self) -> str:
        return grouping(self.name)[1]

    @property
    def seconds_per_object(self) -> float:
        return float(self.seconds.sum()) / len(self.labels)

    @property
    def typical(self) -> int:
        """The object of median final DSC, from 1 on."""
        ranked = np.argsort(self.scores[-1, :, METRICS.index("DSC")], kind="stable")
        return int(ranked[len(ranked) // 2]) + 1

    def curve(self, metric: str) -> np.ndarray:
        """(ROUNDS,) mean over the objects."""
        return self.scores[:, :, METRICS.index(metric)].mean(axis=1)


def grouping(name: str) -> tuple[str, str]:
    """Modality and dataset: from MODALITY/DATASET/CASE.npz, else from the challenge's names.

    These begin with both, as in CT_AMOS_amos_0018.npz; what does not is of modality "other".
    """
    *folders, file_name = PurePosixPath(name).parts
    words = file_name.removesuffix(".npz").split("_")
    dataset = folders[-1] if folders else "_".join(words[:2]) if len(words) > 2 else "other"
    if len(folders) > 1:
        return folders[-2], dataset
    modality = dataset.split("_")[0]
    return (modality, dataset) if modality in MODALITIES else ("other", dataset)


def collect(name: str, labelled: LabelledCase, rounds: list[Round]) -> Result:
    """The result of a case whose rounds are played."""
    count = len(labelled.labels)
    scores = np.zeros((ROUNDS, count, len(METRICS)))
    seconds = np.zeros(ROUNDS)
    clicks = np.full((ROUNDS, count, 4), -1)
    failures = [""] * ROUNDS
    for played in rounds:
        scores[played.index] = played.scores
        seconds[played.index] = played.seconds
        failures[played.index] = played.failure
        for i, click in enumerate(played.clicks):
            if click is not None:
                clicks[played.index, i] = (click.is_foreground, *click.point)
    has_boxes = bool(labelled.case.rounds)
    labels = np.array(labelled.labels)
    return Result(name, labels, has_boxes, scores, seconds, clicks, tuple(failures))


def write_result(path: Path, result: Result, slices: ObjectSlices, fingerprint: str) -> None:
    """Keep a result and a look at it, whole or not at all.

    Args:
        path: The file to write.
        result: What came out.
        slices: Cut through its typical object.
        fingerprint: Says of which contents it is.
    """
    arrays: dict[str, Any] = {
        "fingerprint": fingerprint,
        "name": result.name,
        "labels": result.labels,
        "has_boxes": result.has_boxes,
        "scores": result.scores,
        "seconds": result.seconds,
        "clicks": result.clicks,
        "failures": np.array(result.failures, dtype=str),
    }
    arrays |= {_SLICES + key: value for key, value in vars(slices).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def read_result(path: Path, fingerprint: str | None = None) -> Result | None:
    """A kept result, or None if there is none of this fingerprint that can be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file if not key.startswith(_SLICES)}
        if fingerprint is not None and str(arrays["fingerprint"]) != fingerprint:
            return None
        return Result(
            str(arrays["name"]),
            arrays["labels"],
            bool(arrays["has_boxes"]),
            arrays["scores"],
            arrays["seconds"],
            arrays["clicks"],
            tuple(str(failure) for failure in arrays["failures"]),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def read_slices(path: Path) -> ObjectSlices:
    """The slices in a record."""
    with np.load(path, allow_pickle=False) as file:
        keys = [key for key in file if key.startswith(_SLICES)]
        return ObjectSlices(**{key.removeprefix(_SLICES): file[key] for key in keys})


def write_segs(path: Path, segs: list[np.ndarray], with_all: bool) -> None:
    """Predictions as the official evaluator saves them: `segs` and, of all rounds, `all_segs`.

    Args:
        path: The file to write.
        segs: (D, H, W) uint8, the last one of these rounds the final one.
        with_all: Whether to save `all_segs`, (rounds, D, H, W), too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        members = {"segs": (segs[-1].shape, segs[-1:])}
        if with_all:
            members["all_segs"] = ((len(segs), *segs[-1].shape), segs)
        for key, (shape, volumes) in members.items():  # without a copy of all rounds in memory
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for volume in volumes:
                    for plane in volume:
                        member.write(plane.tobytes())


def write_metrics(path: Path, results: list[Result]) -> None:
    """The official CSV: its columns, their order and their values."""
    rows = []
    for result in results:
        curves = {"DSC": result.curve("DSC"), "NSD": result.curve("NSD_official")}
        row: dict[str, object] = {"CaseName": result.file_name}
        row["TotalRunningTime"] = float(result.seconds.sum())
        row |= {f"RunningTime_{i}": float(s) for i, s in enumerate(result.seconds, 1)}
        row |= {f"{metric}_AUC": auc(curve) for metric, curve in curves.items()}
        row |= {f"{metric}_Final": float(curve[-1]) for metric, curve in curves.items()}
        for metric, curve in curves.items():
            row |= {f"{metric}_{i}": float(value) for i, value in enumerate(curve, 1)}
        row["num_class"] = len(result.labels)
        row["runtime_upperbound"] = int(SECONDS_PER_OBJECT) * len(result.labels)
        rows.append(row)
    _write_csv(path, rows)


def write_metrics_objects(path: Path, results: list[Result]) -> None:
    """A row per case, object and round that was played."""
    rows = []
    for result in results:
        for index in range(0 if result.has_boxes else 1, ROUNDS):
            for i, label in enumerate(result.labels):
                kind, *point = result.clicks[index, i].tolist()
                row: dict[str, object] = {
                    "CaseName": result.file_name,
                    "modality": result.modality,
                    "dataset": result.dataset,
                    "object": i + 1,
                    "label": int(label),
                    "round": index,
                    "click": ("", "bg", "fg")[kind + 1],
                }
                row |= dict(zip("zyx", point if kind >= 0 else ("", "", ""), strict=True))
                row |= dict(zip(METRICS, result.scores[index, i].tolist(), strict=True))
                row["seconds"] = float(result.seconds[index])
                rows.append(row)
    _write_csv(path, rows)


def _write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
