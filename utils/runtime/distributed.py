"""The processes that share the work: those of torchrun, local ones, or this one alone.

`Workers` take cases from one list, and one that dies stops no other; `Processes` train in step.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from utils.runtime.device import choose_device
from utils.runtime.launch import is_launched

T = TypeVar("T")

POLL_SECONDS = 0.2
# One of those that train may validate or write a checkpoint for long, while the others wait.
TIMEOUT = timedelta(hours=2)


def rank_and_count() -> tuple[int, int]:
    """The place of this process among its peers, from 0 on, and their number; (0, 1) if alone."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class Workers:
    """This process among those that share a list of cases; it is alone unless launched.

    All call `agree` and `collect` or `finish` once at the most, in the same order. Values are any
    that JSON can hold.

    Attributes:
        rank: 0 for the first process.
        count: Number of processes.
    """

    def __init__(self) -> None:
        self.rank, self.count = rank_and_count()
        if self.count > 1:
            has_host = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            is_host = self.rank == 0 and not has_host
            store = dist.TCPStore(address, port, is_master=is_host, wait_for_workers=False)
            self._store = _of_this_attempt(store)

    def share(self, items: Sequence[T]) -> Iterator[T]:
        """The items that no other process has taken before."""
        if self.count == 1:
            yield from items
            return
        while (index := self._store.add("taken", 1) - 1) < len(items):
            yield items[index]

    def agree(self, decide: Callable[[], T]) -> T:
        """What the first process decides.

        Raises:
            RuntimeError: It ended before.
        """
        if self.count == 1:
            return decide()
        if self.rank == 0:
            self._give("decision", decide())
        decisions = self._wait("decision", [0])
        if not decisions:
            raise RuntimeError("the first process ended before it decided")
        return decisions[0]

    def collect(self, value: Any) -> list[Any]:
        """In the first process, what each has given that came here, once the others have ended.

        The others get nothing, and leave without an error, at which torchrun would end the first.
        """
        if self.count == 1:
            return [value]
        self._give("collected", value)
        return self._wait("collected", range(self.count)) if self.rank == 0 else []

    def finish(self) -> bool:
        """True in the first process, once all others came here or ended; False in these."""
        return bool(self.collect(None))

    def _give(self, name: str, value: Any) -> None:
        self._store.set(f"{name}/{self.rank}", json.dumps(value))

    def _wait(self, name: str, ranks: Sequence[int]) -> list[Any]:
        """What these processes give under a name; one that ends before gives nothing."""
        values = []
        for rank in ranks:
            given = f"{name}/{rank}"
            while not self._store.check([given]) and not self._store.check([_ended(rank)]):
                time.sleep(POLL_SECONDS)
            if self._store.check([given]):
                values.append(json.loads(self._store.get(given)))
        return values


def _of_this_attempt(store: dist.Store) -> dist.Store:
    """A view of a store without what was left before torchrun restarted the processes."""
    return dist.PrefixStore(f"workers/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _ended(rank: int) -> str:
    return f"ended/{rank}"


def run_local(count: int, command: list[str]) -> int:
    """Run a Python script in several `Workers`; each has a part of the cores.

    Returns:
        The exit status of the first process; one that is killed does not stop the others.
    """
    host = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    cores = len(os.sched_getaffinity(0))
    shared = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(host.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here, not in the first process
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count))),
    }
    store = dist.PrefixStore("workers/0", host)
    processes = []
    try:
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(
                subprocess.Popen([sys.executable, *command], env=os.environ | shared | own)
            )
        running = dict(enumerate(processes))
        while running:
            time.sleep(POLL_SECONDS)
            for rank, process in list(running.items()):
                if process.poll() is not None:
                    del running[rank]
                    store.set(_ended(rank), "")
                    if process.returncode < 0:
                        print(
                            f"process {rank} died of signal {-process.returncode}", file=sys.stderr
                        )
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    return processes[0].returncode if processes[0].returncode >= 0 else 1


@dataclass(frozen=True)
class Processes:
    """This process among those that train together, all of which call each method.

    Attributes:
        rank: 0 for the first process, which alone writes files.
        count: Number of processes.
        device: The device of this one.
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
    """Meet the others that train, if torchrun started this process.

    Args:
        device: As torch names it, or auto. Several processes on cuda take a GPU each.

    Raises:
        ValueError: The device can't be used.
    """
    rank, count = rank_and_count()
    if device.startswith("cuda:") and count > 1:
        raise ValueError(f"--device {device}: expected cuda, as each of {count} takes a GPU")
    chosen = choose_device(device)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if chosen.type == "cuda" and here > torch.cuda.device_count():
        raise ValueError(f"expected {here} GPUs, one a process, got {torch.cuda.device_count()}")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if is_launched():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Processes(rank, count, chosen)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
