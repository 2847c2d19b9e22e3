"""Several processes that take cases from one list: those of torchrun, or local ones."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")

POLL_SECONDS = 0.2


class Workers:
    """This process among its peers, by the environment that torchrun sets; alone without it.

    Attributes:
        rank: 0 for the first process.
        count: Of the processes.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        if self.count > 1:
            has_host = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            self._store = _connect(address, port, self.rank == 0 and not has_host)

    def share(self, items: Sequence[T]) -> Iterator[T]:
        """The items that no other process has taken before."""
        if self.count == 1:
            yield from items
            return
        while (index := self._store.add("taken", 1) - 1) < len(items):
            yield items[index]

    def agree(self, decide: Callable[[], int]) -> int:
        """What the first process decides."""
        if self.count == 1:
            return decide()
        if self.rank == 0:
            decision = decide()
            self._store.set("decision", str(decision))
        return int(self._store.get("decision"))

    def collect(self, text: str) -> list[str]:
        """To the first process, once all have come here, what each gives; to the others nothing.

        These then leave without an error, at which torchrun would end the first one.
        """
        if self.count == 1:
            return [text]
        keys = [f"collected/{rank}" for rank in range(self.count)]
        self._store.set(keys[self.rank], text)
        while self.rank == 0 and not self._store.check(keys):
            time.sleep(POLL_SECONDS)
        return [self._store.get(key).decode() for key in keys] if self.rank == 0 else []

    def finish(self) -> bool:
        """True in the first process, once all have come here; False in the others."""
        if self.count == 1:
            return True
        self._store.set(_finished(self.rank), "")
        everyone = [_finished(rank) for rank in range(self.count)]
        while self.rank == 0 and not self._store.check(everyone):
            time.sleep(POLL_SECONDS)
        return self.rank == 0


def _connect(address: str, port: int, is_host: bool) -> "Store":
    from torch.distributed import PrefixStore, TCPStore

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = TCPStore(address, port, is_master=is_host, wait_for_workers=False)
    return PrefixStore(f"workers/{attempt}", store)


def _finished(rank: int) -> str:
    return f"finished/{rank}"


def run_local(count: int, command: list[str]) -> int:
    """Run a Python script in several processes that share its cases; each has a part of the cores.

    Returns:
        The exit status of the first process; one that is killed does not stop the others.
    """
    from torch.distributed import PrefixStore, TCPStore

    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = PrefixStore("workers/0", host)
    cores = len(os.sched_getaffinity(0))
    shared = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(host.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here, not in the first process
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count))),
    }
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
                    store.set(_finished(rank), "")  # the first one does not wait for it
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
