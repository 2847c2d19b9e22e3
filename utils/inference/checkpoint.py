"""Loading checkpoints: tensors and plain values only, never pickled code."""

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from segment_anything import Sam3D, sam_model_registry3D
from segment_anything.bounds import AdaptiveSettings
from segment_anything.modeling.hybrid3D import PROMPT_CHANNELS
from utils.formats.safe_pickle import STAND_INS

FOREGROUND = "prompt_encoder.point_embeddings.1.weight"
# The metadata of a .safetensors file under this name: a JSON object with fields of Checkpoint.
METADATA = "sam_med3d"
DRAWN = "mask_decoder.prompt_fine.weight"
CHANNELS_BEFORE = 4  # of it, before there were drawings
BOX_EMBEDDINGS = tuple(f"prompt_encoder.point_embeddings.{i}.weight" for i in (2, 3))

# What wrappers put before the names of weights: DDP, torch.compile, Lightning and modules of it.
PREFIXES = re.compile(r"^(?:(?:module|_orig_mod|model|net|network|sam)\.)+")
# How files begin that are no checkpoints, and what they are.
OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with git lfs pull",
    b"<": "a web page: the download failed, or asked for a login",
    b"\xef\xbb\xbf<": "a web page: the download failed, or asked for a login",
    b"{": "a JSON text",
    b"\x1f\x8b": "a gzip file: unpack it",
    b"\x89HDF": "an HDF5 file",
}

Network = TypeVar("Network", bound=nn.Module)


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message names the file and what is wrong with it."""


@dataclass
class Checkpoint:
    """The weights in a file and what it says about them.

    Attributes:
        path: The file.
        state_dict: Tensor by name, without prefixes; memory-mapped where the format allows.
        model_type: Name of the network in the registry.
        model_args: Sizes of the network where they are not those of the registry.
        policy: One of POLICIES: how prompts are to be used.
        policy_args: Settings of the policy that it was trained with, where not the default.
        notices: What a user should know, a line each.
    """

    path: Path
    state_dict: dict[str, Tensor]
    model_type: str = "vit_b_ori"
    model_args: dict[str, Any] = field(default_factory=dict)
    policy: str = "baseline"
    policy_args: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a .safetensors file, or a .pth file of any layout that SAM-Med3D was published in.

    These hold the weights under `model_state_dict` or `state_dict`, or are the bare weights, with
    or without the prefix `module.`. Files with 2 point embeddings (before boxes) get zeros for
    the two corners of a box.

    Raises:
        CheckpointError: The file can't be read, holds code, or holds no weights.
        OSError: It can't be opened.
    """
    _check_beginning(path)
    if _is_safetensors(path):
        content, metadata = _read_safetensors(path)
    else:
        content = metadata = read_plain(path, mmap=_is_zip(path))
    weights = content
    for key in ("model_state_dict", "state_dict"):
        if isinstance(content.get(key), Mapping):
            weights = content[key]
            break
    state_dict: dict[str, Tensor] = {}
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            continue
        plain = PREFIXES.sub("", name)
        if plain in state_dict:
            raise CheckpointError(f"{path.name}: expected one network, got two tensors {plain}")
        state_dict[plain] = value.float() if value.is_floating_point() else value
    if not state_dict:
        raise CheckpointError(f"{path.name}: expected named tensors, got keys {list(content)[:8]}")
    checkpoint = Checkpoint(path, state_dict)
    described = dict(model_type=str, model_args=dict, policy=str, policy_args=dict)
    for key, kind in described.items():
        value = metadata.get(key, getattr(checkpoint, key))
        if not isinstance(value, kind):
            raise CheckpointError(f"{path.name}: expected {key} as {kind.__name__}, got {value!r}")
        setattr(checkpoint, key, value)
    _add_box_embeddings(checkpoint)
    _add_drawing_channels(checkpoint)
    return checkpoint


def adaptive_settings(checkpoint: Checkpoint) -> AdaptiveSettings:
    """The settings that a checkpoint asks of the adaptive policy.

    Raises:
        CheckpointError: They can't be obeyed.
    """
    try:
        return AdaptiveSettings(**checkpoint.policy_args)
    except (TypeError, ValueError) as error:
        name = checkpoint.path.name
        raise CheckpointError(f"{name}: policy_args can't be obeyed: {error}") from error


def _check_beginning(path: Path) -> None:
    """Raises CheckpointError for what is no checkpoint at the first look."""
    with open(path, "rb") as file:
        head = file.read(200)
    what = None if head else "an empty file"
    # The length that begins a safetensors file may look like a text's first letter.
    is_text = head.isascii() and b"\0" not in head
    for start, text in OTHERS.items():
        if head.lstrip().startswith(start) and (is_text or not start.isascii()):
            what = text
    if head and is_text and what is None and not head.startswith(b"\x80"):
        what = f"a text that begins with {head[:20].decode()!r}"
    if what:
        kind = "a safetensors file" if _is_safetensors(path) else "a PyTorch checkpoint"
        raise CheckpointError(f"{path.name}: not {kind}, but {what}")


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one that is broken, which torch then says
        return True


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            if not isinstance(metadata, dict):
                raise ValueError(f"its metadata {METADATA} is {metadata!r}, expected an object")
            return tensors, metadata
    except (SafetensorError, RecursionError, ValueError) as error:
        raise CheckpointError(f"{path.name}: not a safetensors file: {error}") from error


def read_plain(path: Path, mmap: bool) -> dict[str, Any]:
    """What torch saved: tensors, on the CPU, and plain values; arrays of numpy arrive as lists.

    The original also stored its options, an argparse.Namespace.

    Raises:
        CheckpointError: It can't be read, holds code, or is not a dict.
        OSError: It can't be opened.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *STAND_INS]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not named:  # torch's text advises to load it all the same
            found = re.search(r"WeightsUnpickler error: (.*)", str(error))
            reason = found[1] if found else "a pickle that is broken or cut off"
            raise CheckpointError(f"{path.name}: not a PyTorch checkpoint: {reason}") from error
        raise CheckpointError(
            f"{path.name}: refused, since it holds more than tensors and plain values and reading "
            f"it would run code: {named[1]}"
        ) from error
    except OSError:
        raise
    except Exception as error:  # a broken file makes torch fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path.name}: not a PyTorch checkpoint: {reason}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path.name}: expected a dict, got {type(content).__name__}")
    return dict(content)


def lacks_box_embeddings(weights: Mapping[str, Tensor]) -> bool:
    """Whether a network with point embeddings has none for the corners of a box."""
    return FOREGROUND in weights and not any(name in weights for name in BOX_EMBEDDINGS)


def _add_box_embeddings(checkpoint: Checkpoint) -> None:
    weights = checkpoint.state_dict
    if not lacks_box_embeddings(weights):
        return
    foreground = weights[FOREGROUND]
    weights.update({name: torch.zeros_like(foreground) for name in BOX_EMBEDDINGS})
    checkpoint.notices.append(
        "2 point embeddings (made before boxes): those of the box corners start at zero"
    )


def lacks_drawing_channels(weights: Mapping[str, Tensor]) -> bool:
    """Whether a network that draws its prompts was made before it took drawings."""
    weight = weights.get(DRAWN)
    return weight is not None and weight.ndim == 5 and weight.shape[1] == CHANNELS_BEFORE


def _add_drawing_channels(checkpoint: Checkpoint) -> None:
    """Such a network sees nothing of what is drawn."""
    weights = checkpoint.state_dict
    if lacks_drawing_channels(weights):
        missing = PROMPT_CHANNELS - CHANNELS_BEFORE
        weights[DRAWN] = F.pad(weights[DRAWN], (0, 0) * 3 + (0, missing))


class _SkipInit(TorchFunctionMode):
    """Makes the functions of torch.nn.init do nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)


def build_empty(build: Callable[[], Network]) -> Network:
    """A network whose tensors have shapes but no memory, to be assigned from a checkpoint.

    Initialising is skipped, too: on the meta device it computes nothing, but imports half a
    compiler, which takes a second.
    """
    with torch.device("meta"), _SkipInit():
        return build()


def build_model(checkpoint: Checkpoint) -> Sam3D:
    """The network of a checkpoint, in eval mode.

    Raises:
        CheckpointError: Network and weights do not fit.
    """
    path = checkpoint.path
    if checkpoint.model_type not in sam_model_registry3D:
        known = sorted(sam_model_registry3D)
        raise CheckpointError(
            f"{path.name}: expected a model_type of {known}, got {checkpoint.model_type!r}"
        )
    try:
        model = build_empty(
            lambda: sam_model_registry3D[checkpoint.model_type](**checkpoint.model_args)
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name}: model_args do not build a model: {error}") from error
    check_tensors(path.name, model.state_dict(), checkpoint.state_dict)
    model.load_state_dict(checkpoint.state_dict, assign=True)
    return model.eval()


def check_tensors(
    name: str, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], shown: int = 3
) -> None:
    """Raise a CheckpointError that names the tensors that are missing, too many or misshapen."""
    problems = {
        "missing": [key for key in expected if key not in actual],
        "unexpected": [key for key in actual if key not in expected],
        "misshapen": [
            f"{key} (expected {tuple(expected[key].shape)}, got {tuple(actual[key].shape)})"
            for key in expected
            if key in actual and expected[key].shape != actual[key].shape
        ],
    }
    lines = []
    for kind, keys in problems.items():
        if keys:
            more = f", and {len(keys) - shown} more" if len(keys) > shown else ""
            lines.append(f"{len(keys)} {kind}: {', '.join(keys[:shown])}{more}")
    if lines:
        raise CheckpointError(f"{name}: tensors do not fit the network. {'; '.join(lines)}")
