"""Which device a process computes on, and how precisely."""

import os

import torch


def show_gpus(ids: list[int]) -> None:
    """Hide the other GPUs, before CUDA is used; `ids` count among those that a scheduler gave.

    Raises:
        ValueError: There are fewer GPUs.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(i) for i in range(max(ids) + 1)]
    if not 0 <= min(ids) <= max(ids) < len(names):
        raise ValueError(f"--gpu_ids: expected 0 to {len(names) - 1}, got {ids}")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[i] for i in ids)


def choose_device(name: str) -> torch.device:
    """The device that --device names; auto and cuda give each process of torchrun its own GPU.

    A GPU becomes the current one of this process. From here on float32 is computed as float32.

    Raises:
        ValueError: It can't be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and torch.cuda.is_available():
            if device.index is None:
                local_rank = int(os.environ.get("LOCAL_RANK", 0))
                device = torch.device("cuda", local_rank % torch.cuda.device_count())
            torch.cuda.set_device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA: AssertionError
        raise ValueError(f"--device {name} can't be used: {error}") from error
    # By default cuDNN's convolutions take float32 as TF32, with 10 bits of mantissa, which misses
    # the results of a CPU by far more than parity allows. Who wants speed asks for bf16 or fp16,
    # which these settings leave alone.
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    return device


def choose_precision(amp: str, device: torch.device) -> str:
    """The precision that --amp names; auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU."""
    if amp != "auto":
        return amp
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
