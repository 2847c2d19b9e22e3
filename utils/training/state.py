"""What a training run is made of beside its data, and how it is saved and taken up again."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

from segment_anything import Sam3D, sam_model_registry3D
from segment_anything.bounds import AdaptiveSettings
from utils.formats.atomic import atomic_write
from utils.inference.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_tensors,
    lacks_box_embeddings,
    lacks_drawing_channels,
    read_checkpoint,
    read_plain,
)

LATEST, LOSS_BEST, DICE_BEST = (
    f"sam_model_{which}.pth" for which in ("latest", "loss_best", "dice_best")
)


@dataclass
class Progress:
    """How far a run has come; saved under these names.

    Attributes:
        epoch: Epochs done, validation included.
        cases: Identifies the training cases, whose order an epoch follows.
        step: Batches done in the epoch begun, up to the last optimizer step; all of them where
            only its validation is left.
        loss_sum: Sum of the losses of these batches.
        dice_sum: Sum of their Dice.
        losses: Mean loss of each epoch.
        dices: Mean over each epoch of the Dice after the last round.
        best_loss: Least of the losses.
        best_dice: Highest Dice of the cases for validation, or, without them, of the dices.
        log: A row per epoch.
    """

    epoch: int = 0
    cases: str = ""
    step: int = 0
    loss_sum: float = 0.0
    dice_sum: float = 0.0
    losses: list[float] = field(default_factory=list)
    dices: list[float] = field(default_factory=list)
    best_loss: float = inf
    best_dice: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class TrainState:
    """All that training changes, the network's description, and how it is to be used."""

    model: Sam3D
    model_type: str
    model_args: dict[str, Any]
    optimizer: Optimizer
    scheduler: lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    policy: str = "baseline"
    settings: AdaptiveSettings = field(default_factory=AdaptiveSettings)
    progress: Progress = field(default_factory=Progress)


def build_network(
    checkpoint: Checkpoint | None,
    model_type: str | None = None,
    img_size: int | None = None,
    allow_partial_weight: bool = False,
) -> tuple[Sam3D, str, dict[str, Any], list[str]]:
    """Build a network to be trained.

    Args:
        checkpoint: Its weights are copied; None: they are random.
        model_type: A name in the registry; None: the checkpoint's, or vit_b_ori.
        img_size: Voxels along the ROI's sides; None: as the checkpoint or the registry says.
        allow_partial_weight: Leave tensors that do not fit as they are initialised.

    Returns:
        The network, its type and sizes, and the names of the tensors that were left.

    Raises:
        CheckpointError: Checkpoint and network do not fit.
        ValueError: The sizes do not.
    """
    model_args: dict[str, Any] = {}
    if checkpoint is not None and model_type in (None, checkpoint.model_type):
        model_type, model_args = checkpoint.model_type, dict(checkpoint.model_args)
    model_type = model_type or "vit_b_ori"
    if model_type not in sam_model_registry3D:
        known = ", ".join(sorted(sam_model_registry3D))
        raise ValueError(f"expected a model_type of {known}, got {model_type!r}")
    if img_size is not None:
        model_args["img_size"] = img_size
    model = sam_model_registry3D[model_type](**model_args)
    if checkpoint is None:
        return model, model_type, model_args, []
    own, weights = model.state_dict(), checkpoint.state_dict
    if allow_partial_weight:
        weights = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
        if not weights:
            raise CheckpointError(f"{checkpoint.path.name}: no tensor fits the network")
    else:
        check_tensors(checkpoint.path.name, own, weights)
    model.load_state_dict(weights, strict=False)
    return model, model_type, model_args, [name for name in own if name not in weights]


def save_state(path: Path, state: TrainState, options: Mapping[str, Any]) -> None:
    """Write a checkpoint with the keys of the original, tensors and plain values only.

    `lr_scheduler_state_dict` is there for the original's code; `resume` does without.

    Args:
        path: Replaced as a whole, or not at all.
        state: What to save.
        options: Saved beside it under the names that they have: `args` and what else is known.
    """
    content = {
        "model_state_dict": state.model.state_dict(),
        "model_type": state.model_type,
        "model_args": state.model_args | {"img_size": state.model.img_size},
        "policy": state.policy,
        "policy_args": asdict(state.settings),
        "optimizer_state_dict": state.optimizer.state_dict(),
        "lr_scheduler_state_dict": state.scheduler.state_dict(),
        "scaler_state_dict": state.scaler.state_dict(),
        "rng_state": torch.get_rng_state(),
        **asdict(state.progress),
        **options,
    }
    with atomic_write(path) as file:
        torch.save(content, file)


def read_state(path: Path) -> dict[str, Any]:
    """Read what `save_state`, or the original, wrote; tensors on the CPU.

    Raises:
        CheckpointError: It is not a whole checkpoint of a training run, or holds code.
    """
    content = read_plain(path, mmap=False)  # its tensors are trained on
    needed = ("model_state_dict", "optimizer_state_dict", "epoch")
    if missing := [key for key in needed if key not in content]:
        raise CheckpointError(f"{path}: can't be resumed: expected {', '.join(missing)}, got none")
    if lacks_box_embeddings(content["model_state_dict"]):
        raise CheckpointError(
            f"{path}: made before boxes (2 point embeddings), so its run can't be resumed; begin "
            f"another one from it with --checkpoint"
        )
    if lacks_drawing_channels(content["model_state_dict"]):
        raise CheckpointError(
            f"{path}: made before scribbles and lassos, so its run can't be resumed; begin another "
            f"one from it with --checkpoint"
        )
    return content


def saved_checkpoint(path: Path, content: Mapping[str, Any], model_type: str) -> Checkpoint:
    """The weights that `read_state` found at a path; the original names no `model_type`."""
    return Checkpoint(
        path,
        content["model_state_dict"],
        content.get("model_type", model_type),
        dict(content.get("model_args", {})),
        policy_args=dict(content.get("policy_args", {})),
    )


def check_resumed(
    content: Mapping[str, Any], options: Mapping[str, Any], model_type: str, img_size: int
) -> None:
    """Make sure that a run goes on as what it was.

    Args:
        content: What `read_state` returned. The options in a file of the original say nothing.
        options: Those of now, with the number of processes.
        model_type: That of the network in `content`.
        img_size: Voxels along the sides of its ROI.

    Raises:
        ValueError: The options are those of another recipe, optimizer or network, or `content`
            lies within an epoch and they are those of another one.
    """
    saved = content.get("args")
    if isinstance(saved, dict):
        saved = {"shapes": None, "weigh": None} | saved
        saved = {"recipe": "published", "optimizer": "adamw", "synthetic": 0} | saved
        for key in ("recipe", "optimizer"):
            if saved[key] != options[key]:
                raise ValueError(
                    f"--resume: the run is of --{key} {saved[key]}, got {options[key]}"
                )
    named = options["model_type"], options["img_size"]
    if named[0] not in (None, model_type) or named[1] not in (None, img_size):
        raise ValueError(
            f"--resume: the run is of {model_type} with --img_size {img_size}, got {named[0]} with "
            f"{named[1]}"
        )
    if not isinstance(saved, dict) or not content.get("step"):
        return
    samples = ("seed", "min_voxels", "synthetic", "shapes", "weigh")
    for key in ("batch_size", "accumulation_steps", "processes", *samples):
        if saved[key] != options[key]:
            raise ValueError(
                f"--resume: the checkpoint lies within an epoch of {key} {saved[key]}, expected "
                f"the same, got {options[key]}"
            )


def resume(state: TrainState, content: Mapping[str, Any]) -> None:
    """Take up a run; `state` was built with the network that `content` describes.

    Learning rate, weight decay and schedule stay those that `state` was built with, so that a
    changed option counts; the schedule is brought to the epoch.

    Raises:
        CheckpointError: The optimizer does not fit.
    """
    saved, own = content["optimizer_state_dict"], state.optimizer.state_dict()
    theirs, ours = ([len(g["params"]) for g in d["param_groups"]] for d in (saved, own))
    if theirs != ours:
        raise CheckpointError(f"expected an optimizer of {ours} tensors, got {theirs}")
    state.model.load_state_dict(content["model_state_dict"])
    state.optimizer.load_state_dict(own | {"state": saved["state"]})
    with warnings.catch_warnings():  # torch expects steps of the optimizer in between
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(content["epoch"]):
            state.scheduler.step()
    if content.get("scaler_state_dict"):  # empty where no scaler was used
        state.scaler.load_state_dict(content["scaler_state_dict"])
    if "rng_state" in content:
        torch.set_rng_state(content["rng_state"])
    known = {f.name: content[f.name] for f in fields(Progress) if f.name in content}
    state.progress = Progress(**known)


def read_weights(path: Path) -> Checkpoint:
    """Read a checkpoint to begin with, or say how to get the published weights.

    Raises:
        FileNotFoundError: It is not there.
        CheckpointError: It can't be used.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"--checkpoint {path}: no such file. Fetch the published weights (402 MB) with\n"
            f"    python ckpt/download.py {path.stem}"
        )
    return read_checkpoint(path)
