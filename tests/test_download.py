"""ckpt/download.py against a local server that answers as Hugging Face does."""

import hashlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from conftest import ROOT, TINY
from utils.inference.checkpoint import BOX_EMBEDDINGS, build_model, read_checkpoint
from utils.inference.published import PUBLISHED

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
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


def fetch(folder, endpoint: str, name: str = NAME):
    environment = os.environ | {"HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, ROOT / "ckpt" / "download.py", name, "--folder", folder],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_a_file_is_fetched_whole_and_once(hub, tmp_path):
    result = fetch(tmp_path / "new", hub.endpoint)
    assert result.returncode == 0, result.stderr
    assert os.listdir(tmp_path / "new") == [f"{NAME}.pth"]
    assert (tmp_path / "new" / f"{NAME}.pth").read_bytes() == CONTENT
    count = len(hub.requests)
    assert fetch(tmp_path / "new", hub.endpoint, f"{NAME}.pth").returncode == 0
    assert len(hub.requests) == count


def test_an_interrupted_download_goes_on_where_it_stopped(hub, tmp_path):
    part = tmp_path / f".{NAME}.pth.{hub.etag}.part"
    part.write_bytes(CONTENT[:300_000])
    assert fetch(tmp_path, hub.endpoint).returncode == 0
    assert hub.requests[-1][2] == "bytes=300000-"
    assert (tmp_path / f"{NAME}.pth").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == [f"{NAME}.pth"]


def test_a_dropped_connection_is_taken_up_again(hub, tmp_path):
    hub.content = CONTENT * 24
    hub.etag = hashlib.sha256(hub.content).hexdigest()
    hub.stop_after = 11 * 2**20  # huggingface_hub writes pieces of 10 MiB
    result = fetch(tmp_path, hub.endpoint)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / f"{NAME}.pth").read_bytes() == hub.content
    resumed = [wanted for _, _, wanted in hub.requests if wanted]
    assert resumed == [f"bytes={10 * 2**20}-", f"bytes={20 * 2**20}-"]


def test_another_content_is_refused(hub, tmp_path):
    hub.content = CONTENT[:-1] + b"x"
    result = fetch(tmp_path, hub.endpoint)
    assert result.returncode == 1 and f"expected sha256 {hub.etag}, got" in result.stderr
    assert os.listdir(tmp_path) == []


def test_the_published_hash_counts_too(hub, tmp_path):
    hub.name = "sam_med3d_turbo_cvpr_coreset"
    result = fetch(tmp_path, hub.endpoint, hub.name)
    assert result.returncode == 1 and "expected sha256" in result.stderr
    assert PUBLISHED[f"{hub.name}.pth"] in result.stderr
    assert os.listdir(tmp_path) == []


def test_a_file_the_server_lacks(hub, tmp_path):
    result = fetch(tmp_path, hub.endpoint, "sam_med3d_turbo")
    assert result.returncode == 1
    assert result.stderr.startswith("sam_med3d_turbo.pth: the server refused it: ")
    assert "404 Not Found" in result.stderr
    assert os.listdir(tmp_path) == []


def test_offline(tmp_path):
    result = fetch(tmp_path, "http://127.0.0.1:9")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"{NAME}.pth: can't reach http://127.0.0.1:9/" in result.stderr
    assert "set HF_ENDPOINT to a mirror" in result.stderr


def test_an_unknown_name_lists_the_known(tmp_path):
    result = fetch(tmp_path, "http://127.0.0.1:9", "other")
    assert result.returncode == 2
    assert "expected one of sam_med3d_turbo_cvpr_alldata.pth, " in result.stderr


def make_bbox_init(*paths):
    command = [sys.executable, ROOT / "ckpt" / "make_bbox_init.py", *paths]
    return subprocess.run(command, capture_output=True, text=True)


def test_make_bbox_init(tmp_path, tiny_model, tiny_checkpoint):
    weights = {k: v for k, v in tiny_model.state_dict().items() if k not in BOX_EMBEDDINGS}
    old, new = tmp_path / "old.pth", tmp_path / "new.pth"
    torch.save({"model_state_dict": weights, "model_args": TINY}, old)
    assert make_bbox_init(old, new).returncode == 0
    checkpoint = read_checkpoint(new)
    assert checkpoint.notices == [] and set(BOX_EMBEDDINGS) < set(checkpoint.state_dict)
    build_model(checkpoint)

    result = make_bbox_init(old, new)
    assert result.returncode == 1 and "exists, expected the name of a new file" in result.stderr
    result = make_bbox_init(tiny_checkpoint, tmp_path / "other.pth")
    assert result.returncode == 1 and "expected 2 point embeddings, got 4" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["new.pth", "old.pth"]
