"""Processes that share work, as threads beside a store of their own, or as small programs."""

import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.distributed import PrefixStore, TCPStore

from utils.runtime import distributed
from utils.runtime.distributed import (
    Processes,
    Workers,
    is_launched,
    join_processes,
    rank_and_count,
    run_local,
)


@pytest.fixture
def host() -> TCPStore:
    """The store of `worker`."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def worker(monkeypatch, host) -> Callable[..., Workers]:
    """Makes the worker of a rank among `count`, in this process."""
    monkeypatch.setattr(distributed, "POLL_SECONDS", 0.01)

    def make(rank: int, count: int = 2, **changes: str) -> Workers:
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(host.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        for key, value in (variables | changes).items():
            monkeypatch.setenv(key, value)
        return Workers()

    return make


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def end(host: TCPStore, rank: int) -> None:
    """As `run_local` says when a process has ended."""
    PrefixStore("workers/0", host).set(f"ended/{rank}", "")


def test_a_process_that_nothing_launched_is_alone(monkeypatch):
    for key in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    assert rank_and_count() == (0, 1) and not is_launched()
    alone = Workers()
    assert list(alone.share("abc")) == ["a", "b", "c"]
    assert alone.agree(lambda: 3) == 3 and alone.collect(["a"]) == [["a"]] and alone.finish()
    with join_processes("cpu") as processes:
        assert processes == Processes(0, 1, torch.device("cpu"))
        assert processes.sum([1.5, 2]) == [1.5, 2] and processes.gather({"a"}) == [{"a"}]


def test_each_item_is_taken_once(worker):
    first, second = worker(0), worker(1)
    a, b = first.share("abcde"), second.share("abcde")
    assert [next(a), next(b), next(b), next(a)] == ["a", "b", "c", "d"]
    assert list(b) == ["e"] and list(a) == []


def test_the_first_decides(worker, pool):
    first, second = worker(0), worker(1)
    decision = pool.submit(second.agree, lambda: pytest.fail("not asked"))
    assert first.agree(lambda: 2) == 2 and decision.result(30) == 2


def test_no_decision_is_an_error_where_the_first_process_ended(worker, host, pool):
    second = worker(1)
    decision = pool.submit(second.agree, lambda: 0)
    end(host, 0)
    with pytest.raises(RuntimeError, match="the first process ended before it decided"):
        decision.result(30)


def test_the_first_collects_any_values_in_the_order_of_ranks(worker, pool):
    workers = [worker(rank, 3) for rank in range(3)]
    values = [["a/b", 'c"'], [], {"d": None}]
    collected = pool.submit(workers[0].collect, values[0])
    assert [workers[i].collect(values[i]) for i in (2, 1)] == [[], []]
    assert collected.result(30) == values


def test_the_first_waits_for_the_others_but_not_for_one_that_ended(worker, host, pool):
    workers = [worker(rank, 3) for rank in range(3)]
    is_last = pool.submit(workers[0].finish)
    end(host, 1)
    time.sleep(0.1)
    assert not is_last.done()
    assert not workers[2].finish() and is_last.result(30)


def test_what_the_others_gave_before_they_ended_is_kept(worker, host):
    first, second = worker(0), worker(1)
    second.collect(["a"])
    end(host, 1)
    assert first.collect([]) == [[], ["a"]]


def test_a_restart_begins_anew(worker):
    list(worker(0).share("abc"))
    assert list(worker(0, TORCHELASTIC_RESTART_COUNT="1").share("abc")) == ["a", "b", "c"]


def test_the_first_process_holds_the_store_where_no_agent_does(worker):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    changes = {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": port}
    first, second = (worker(rank, **changes) for rank in range(2))
    assert list(second.share("ab")) == ["a", "b"] and list(first.share("ab")) == []


def test_local_processes_share_cores_and_one_that_dies_stops_no_other(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(7))
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "rank, count = os.environ['RANK'], os.environ['WORLD_SIZE']\n"
        "pathlib.Path(sys.argv[1], rank).write_text(count + os.environ['OMP_NUM_THREADS'])\n"
        "rank == '1' and os.kill(os.getpid(), 9)\n"
        "time.sleep(0.5)\n"
        "pathlib.Path(sys.argv[1], f'end_{rank}').touch()\n"
        "sys.exit(5 - int(rank))\n"
    )
    assert run_local(3, [str(script), str(tmp_path)]) == 5
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["32"] * 3
    assert sorted(path.name for path in tmp_path.glob("end_*")) == ["end_0", "end_2"]
    assert capfd.readouterr().err == f"process 1 died of signal {int(signal.SIGKILL)}\n"


def test_several_processes_take_a_gpu_each(monkeypatch):
    monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device cuda:1: expected cuda, as each of 2 takes"):
        join_processes("cuda:1").__enter__()
