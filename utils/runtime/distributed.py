"""The processes that train together: those of torchrun, or this one alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from utils.runtime.device import choose_device

# One of them may validate or write a checkpoint for long, while the others wait.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """This process among its peers; the methods are called by all of them.

    Attributes:
        rank: 0 for the first process, which alone writes files.
        count: Of the processes.
        device: Of this one.
    """

    rank: int
    count: int
    device: torch.device

    def sum(self, values: list[float]) -> list[float]:
        """The sums over the processes."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, which must be picklable, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Meet the others, if torchrun started this process.

    Args:
        device: As torch names it, or auto. Several processes on cuda take a GPU each.

    Raises:
        ValueError: The device can't be used.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device.startswith("cuda:") and count > 1:
        raise ValueError(f"--device {device}: expected cuda, as each of {count} takes a GPU")
    chosen = choose_device(device)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if chosen.type == "cuda" and here > torch.cuda.device_count():
        raise ValueError(f"expected {here} GPUs, one a process, got {torch.cuda.device_count()}")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Processes(rank, count, chosen)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
