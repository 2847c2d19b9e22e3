"""Tasks that a cluster starts, and folders that two runs want."""

import subprocess
import sys

import pytest

import infer
import train
from conftest import ROOT
from utils.runtime.launch import TASKS, check_launch
from utils.runtime.lock import locked

NAMES = [name for totals, index in TASKS.values() for name in (*totals, index)] + ["RANK"]


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


@pytest.mark.parametrize("launcher", TASKS)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_tasks_that_know_nothing_of_each_other_are_refused(launcher, rank, environment, capsys):
    totals, index = TASKS[launcher]
    for name, value in (*((total, "2") for total in totals), (index, rank)):
        environment(name, value)
    message = f"{launcher} started 2 tasks that know nothing of each other"
    with pytest.raises(ValueError, match=f"{message}.*torchrun .* train.py"):
        check_launch("train.py")
    for script, options in ((train, ["--task_name=x"]), (infer, ["--inputs=a", "--outputs=b"])):
        assert script.main(script.get_args_parser().parse_args(options)) == 2
        assert message in capsys.readouterr().err
    environment("RANK", rank)  # of torchrun
    check_launch("train.py")


def test_one_task_and_a_batch_script_are_not(environment):
    check_launch("train.py")
    environment("SLURM_NTASKS", "8")
    environment("SLURM_PROCID", "0")
    check_launch("train.py")
    environment("SLURM_PROCID", "3")
    with pytest.raises(ValueError, match="srun started 8 tasks"):
        check_launch("train.py")
    environment("SLURM_STEP_NUM_TASKS", "1")  # a shell in an allocation for eight
    environment("SLURM_PROCID", "0")
    check_launch("train.py")
    environment("SLURM_NTASKS", "1")
    check_launch("train.py")


HOLD = """
import sys
from pathlib import Path
from utils.runtime.lock import locked
with locked(Path(sys.argv[1]), "--outputs"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_one_process_at_a_time(tmp_path, capsys):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        message = f"process {other.pid} on .* writes to it: .* --task_name"
        with pytest.raises(ValueError, match=message), locked(tmp_path, "--task_name"):
            pass
        other.kill()
        other.wait()
    for _ in range(2):  # whose lock ended with it
        with locked(tmp_path, "--task_name"):
            assert (tmp_path / "lock").read_text().startswith("process ")
