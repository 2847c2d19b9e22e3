"""Which device a process computes on, and how precisely."""

import os
from typing import TYPE_CHECKING

# torch is imported where it is used: `show_gpus` comes before it.
if TYPE_CHECKING:
    import torch


def show_gpus(ids: list[int]) -> None:
    """Hide the other GPUs, before CUDA is used; `ids` count among those that a scheduler gave.

    Raises:
        ValueError: There are fewer.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(i) for i in range(max(ids) + 1)]
    if not 0 <= min(ids) <= max(ids) < len(names):
        raise ValueError(f"--gpu_ids: expected 0 to {len(names) - 1}, got {ids}")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[i] for i in ids)


def choose_device(name: str) -> "torch.device":
    """The device that --device names; auto and cuda give each process of torchrun its own GPU.

    Raises:
        ValueError: It can't be used.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if name == "cuda" and torch.cuda.is_available():
            local_rank = int(os.environ.get("LOCAL_RANK", 0))
            device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA: AssertionError
        raise ValueError(f"--device {name} can't be used: {error}") from error
    return device


def choose_precision(amp: str, device: "torch.device") -> str:
    """What --amp names; auto: bf16 on a GPU that has it, else fp16, and fp32 on a CPU."""
    import torch

    if amp != "auto":
        return amp
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
