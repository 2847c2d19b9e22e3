"""serve.py as a process: what it prints, and how it ends."""

import signal
import subprocess
import sys

import httpx
import pytest

import serve
from conftest import ROOT


def test_it_says_where_it_is_and_ends_cleanly(tiny_checkpoint):
    command = [sys.executable, "serve.py", "--port", "0", "--checkpoint", str(tiny_checkpoint)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("http://127.0.0.1:"):
                break
        url, word, key = lines[-1].split()
        assert word == "key" and len(key) >= 24
        claimed = httpx.post(f"{url}/claim", headers={"Authorization": f"Bearer {key}"})
        assert claimed.json()["max_sessions"] == 4
        assert httpx.post(f"{url}/claim").status_code == 401
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and not errors
    assert output.splitlines()[0].startswith("POST /claim 200 ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--checkpoint", "none.pth"), "--checkpoint none.pth: no such file"),
        (("--window", "liver"), "expected abdomen, lung, brain, bone or LEVEL,WIDTH"),
        (("--device", "cuda:77"), "can't be used"),
        (("--host", "203.0.113.1"), "--host 203.0.113.1 --port 1527: can't be listened on"),
    ],
)
def test_what_it_can_not_begin_with(options, message, capsys, tiny_checkpoint):
    given = ("--checkpoint", str(tiny_checkpoint), *options)
    assert serve.main(serve.get_args_parser().parse_args(given)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--max-gb=nan", "--max-gb=-1", "--idle-timeout=inf"])
def test_numbers_that_make_no_sense(option, capsys):
    with pytest.raises(SystemExit):
        serve.get_args_parser().parse_args([option])
    assert "expected a number above 0" in capsys.readouterr().err
