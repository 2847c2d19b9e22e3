"""ckpt/download.py against a local server that answers as Hugging Face does."""

import hashlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from ckpt import download
from conftest import ROOT
from utils.inference.published import FORMER_NAMES, PUBLISHED

CONTENT = bytes(range(256)) * 4000
NAME = "sam_med3d_turbo_cvpr_alldata"  # no published hash: only the server's


class Hub(BaseHTTPRequestHandler):
    name = NAME
    content = CONTENT
    etag = hashlib.sha256(CONTENT).hexdigest()
    stop_after: int | None = None  # drops the connection after so many bytes
    requests: list[tuple[str, str, str | None]] = []

    def do_HEAD(self):
        self.answer(send_content=False)

    def do_GET(self):
        self.answer(send_content=True)

    def answer(self, send_content: bool):
        wanted = self.headers.get("Range")
        self.requests.append((self.command, self.path, wanted))
        if self.path != f"/blueyo0/SAM-Med3D/resolve/main/{self.name}.pth":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        if wanted:
            end = len(self.content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        self.send_header("ETag", f'"{self.etag}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if send_content:
            self.wfile.write(self.content[start : start + (self.stop_after or 10**9)])

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    handler = type("Handler", (Hub,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    handler.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(monkeypatch, capsys):
    """Runs ckpt/download.py with HF_ENDPOINT -> (status, stdout, stderr)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def call(folder, endpoint: str, name: str = NAME) -> tuple[int, str, str]:
        # What huggingface_hub makes of HF_ENDPOINT when it is imported.
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        options = [name, "--folder", str(folder)]
        status = download.main(download.get_args_parser().parse_args(options))
        return status, *capsys.readouterr()

    return call


def test_a_file_is_fetched_whole_and_once(hub, fetch, tmp_path):
    """From the mirror that HF_ENDPOINT names."""
    result = subprocess.run(
        [sys.executable, ROOT / "ckpt" / "download.py", NAME, "--folder", tmp_path / "new"],
        env=os.environ | {"HF_ENDPOINT": hub.endpoint, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
    )
    path = tmp_path / "new" / f"{NAME}.pth"
    assert (result.returncode, result.stdout) == (0, f"{path}: 1 MB\n"), result.stderr
    assert os.listdir(tmp_path / "new") == [f"{NAME}.pth"] and path.read_bytes() == CONTENT
    count = len(hub.requests)
    assert fetch(tmp_path / "new", hub.endpoint, f"{NAME}.pth")[0] == 0
    assert len(hub.requests) == count


def test_an_interrupted_download_goes_on_where_it_stopped(hub, fetch, tmp_path):
    part = tmp_path / f".{NAME}.pth.{hub.etag}.part"
    part.write_bytes(CONTENT[:300_000])
    assert fetch(tmp_path, hub.endpoint)[0] == 0
    assert hub.requests[-1][2] == "bytes=300000-"
    assert (tmp_path / f"{NAME}.pth").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == [f"{NAME}.pth"]


def test_a_dropped_connection_is_taken_up_again(hub, fetch, tmp_path):
    hub.content = CONTENT * 24
    hub.etag = hashlib.sha256(hub.content).hexdigest()
    hub.stop_after = 11 * 2**20  # huggingface_hub writes pieces of 10 MiB
    status, _, err = fetch(tmp_path, hub.endpoint)
    assert status == 0, err
    assert (tmp_path / f"{NAME}.pth").read_bytes() == hub.content
    resumed = [wanted for _, _, wanted in hub.requests if wanted]
    assert resumed == [f"bytes={10 * 2**20}-", f"bytes={20 * 2**20}-"]


@pytest.mark.parametrize("ending", ["", ".pth"])
def test_the_name_of_the_tutorial_fetches_the_file_that_was_renamed(
    ending, hub, fetch, tmp_path, monkeypatch
):
    hub.name = "sam_med3d_turbo_cvpr_coreset"
    monkeypatch.setitem(PUBLISHED, f"{hub.name}.pth", hub.etag)
    status, out, err = fetch(tmp_path, hub.endpoint, f"sam_med3d_turbo_bbox_cvpr{ending}")
    assert status == 0, err
    assert out.splitlines() == [
        "sam_med3d_turbo_bbox_cvpr.pth is published as sam_med3d_turbo_cvpr_coreset.pth now, "
        "which is fetched",
        f"{tmp_path / hub.name}.pth: 1 MB",
    ]
    assert os.listdir(tmp_path) == [f"{hub.name}.pth"]


def test_former_names_are_of_published_files():
    assert set(FORMER_NAMES.values()) <= set(PUBLISHED) and not set(FORMER_NAMES) & set(PUBLISHED)


def test_another_content_is_refused(hub, fetch, tmp_path):
    hub.content = CONTENT[:-1] + b"x"
    status, _, err = fetch(tmp_path, hub.endpoint)
    assert status == 1 and f"expected sha256 {hub.etag}, got" in err
    assert os.listdir(tmp_path) == []


def test_the_published_hash_counts_too(hub, fetch, tmp_path):
    hub.name = "sam_med3d_turbo_cvpr_coreset"
    status, _, err = fetch(tmp_path, hub.endpoint, hub.name)
    assert status == 1 and "expected sha256" in err
    assert PUBLISHED[f"{hub.name}.pth"] in err
    assert os.listdir(tmp_path) == []


def test_a_file_the_server_lacks(hub, fetch, tmp_path):
    status, _, err = fetch(tmp_path, hub.endpoint, "sam_med3d_turbo")
    assert status == 1 and err.startswith("sam_med3d_turbo.pth: the server refused it: ")
    assert "404 Not Found" in err
    assert os.listdir(tmp_path) == []


def test_offline(fetch, tmp_path):
    status, _, err = fetch(tmp_path, "http://127.0.0.1:9")
    assert status == 1 and err.startswith(f"{NAME}.pth: can't reach http://127.0.0.1:9/")
    assert "set HF_ENDPOINT to a mirror" in err


def test_an_unknown_name_lists_the_known(fetch, tmp_path):
    status, _, err = fetch(tmp_path, "http://127.0.0.1:9", "other")
    assert status == 2
    assert err.startswith("expected one of sam_med3d_turbo_cvpr_alldata.pth, ")
