"""What a viewer waits for: whole round trips of its client; and what the server holds and survives.

    python bench/bench_serve.py --checkpoint ckpt/sam_med3d_small.safetensors

A server in a process of its own, on this machine. Then leases come and go (`--leases`), and bodies
of noise and of garbled arrays (`--bodies`): each must be answered, and the server must be there.
"""

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

import httpx
import numpy as np
from nnInteractive.inference.remote.remote_session import nnInteractiveRemoteInferenceSession
from nnInteractive.inference.remote.serialization import pack_array

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import ROOT, bench_parser, origin, print_header, print_row, size_text

VOLUME, TINY_VOLUME = (150, 512, 512), (20, 64, 60)
SPACING = (2.5, 0.8, 0.8)  # mm, (z, y, x)
KEY = "bench"
PATHS = (
    *("set_image", "add_scribble_interaction", "add_lasso_interaction"),
    *("add_initial_seg_interaction", "add_point_interaction", "add_bbox_interaction", "predict"),
)


def get_args_parser() -> argparse.ArgumentParser:
    parser = bench_parser(__doc__, repeats=9)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--leases", type=int, default=200, help="that come and go")
    parser.add_argument("--bodies", type=int, default=10_000, help="of noise")
    return parser


class Process:
    """A server in a process of its own, while the context stands."""

    def __init__(self, checkpoint: Path, *scan: str) -> None:
        command = [sys.executable, str(ROOT / "serve.py"), "--port", "0", "--api-key", KEY]
        self.command = [*command, "--checkpoint", str(checkpoint), *scan]

    def __enter__(self) -> "Process":
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("http://"):
                self.url = line.split()[0]
                break
        else:
            raise RuntimeError(f"exit status {self.process.wait()}: {' '.join(self.command)}")
        # Nobody reads its log, which must not fill the pipe.
        self.drain = subprocess.Popen(["cat"], stdin=self.process.stdout, stdout=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        status = self.process.wait(30)
        self.drain.wait()
        assert status == 0, f"the server ended with {status}"

    def client(self) -> nnInteractiveRemoteInferenceSession:
        return nnInteractiveRemoteInferenceSession(self.url, api_key=KEY)

    def gigabytes(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 2**20


def volume(shape: tuple[int, int, int]) -> np.ndarray:
    """Noise with a bright ball in the middle, as int16."""
    rng = np.random.default_rng(0)
    image = rng.normal(100, 20, shape).astype(np.int16)
    grid = np.ogrid[tuple(slice(-n // 2, n - n // 2) for n in shape)]
    ball = sum((axis / (n / 6)) ** 2 for axis, n in zip(grid, shape, strict=True)) <= 1
    image[ball] += 120
    return image


def bench_trips(server: Process, shape: tuple[int, int, int], repeats: int) -> None:
    image = volume(shape)
    z, y, x = (n // 2 for n in shape)
    half = [n // 6 for n in shape]
    box = [[c - h, c + h] for c, h in zip((z, y, x), half, strict=True)]
    times: dict[str, list[float]] = {"set_image": [], "first box": [], "click": [], "undo": []}

    def timed(name: str, call, *args) -> None:
        start = time.perf_counter()
        call(*args)
        times[name].append(1000 * (time.perf_counter() - start))

    with server.client() as client:
        buffer = np.zeros(shape, np.uint8)
        for i in range(repeats + 1):
            timed("set_image", client.set_image, image[None], {"spacing": list(SPACING)})
            client.set_target_buffer(buffer)
            timed("first box", client.add_bbox_interaction, box, True)
            timed("click", client.add_point_interaction, (z, y + i % 5, x), True)
            timed("undo", client.undo)
            client.reset_interactions()
    print_header(f"round trip, {size_text(shape)} int16", "median", "longest")
    for name, values in times.items():
        print_row(name, f"{median(values[1:]):.0f} ms", f"{max(values[1:]):.0f} ms")


def bench_leases(server: Process, count: int) -> None:
    image = volume((40, 96, 100))
    sizes = []
    for _ in range(count):
        with server.client() as client:
            client.set_image(image[None], {"spacing": list(SPACING)})
            client.set_target_buffer(np.zeros(image.shape, np.uint8))
            client.add_bbox_interaction([[10, 30], [20, 70], [20, 70]], True)
        sizes.append(server.gigabytes())
    print_header("leases that came and went", "memory after the tenth", "after the last")
    print_row(count, f"{sizes[min(9, count - 1)]:.2f} GB", f"{sizes[-1]:.2f} GB")


def bench_bodies(server: Process, count: int) -> None:
    rng = random.Random(0)
    good = pack_array(np.ones((1, 8, 9, 10), np.uint8))
    outcomes: Counter[int] = Counter()
    with server.client() as client, httpx.Client(base_url=server.url, timeout=30) as raw:
        headers = {"Authorization": f"Bearer {KEY}", "X-Lease-Token": str(client._lease_token)}
        for _ in range(count):
            body = bytearray(good if rng.random() < 0.8 else rng.randbytes(rng.randrange(300)))
            for _ in range(rng.randrange(4) if body else 0):
                body[rng.randrange(len(body))] = rng.randrange(256)
            own = headers | {"X-Meta": rng.choice(["{}", "[", '{"run_prediction": false}', "null"])}
            if rng.random() < 0.9:
                own["Content-Type"] = "application/octet-stream"
            answer = raw.post(f"/{rng.choice(PATHS)}", content=bytes(body), headers=own)
            outcomes[answer.status_code] += 1
        assert raw.get("/healthz").status_code == 200
    text = ", ".join(f"{n} x {status}" for status, n in sorted(outcomes.items()))
    print(f"{count} bodies: {text}; the server is there, with {server.gigabytes():.2f} GB")
    assert 500 not in outcomes


def main(args: argparse.Namespace) -> None:
    print(f"{origin('cpu')}\n")
    with Process(args.checkpoint) as server:
        bench_trips(server, TINY_VOLUME if args.tiny else VOLUME, args.repeats)
        print()
        bench_leases(server, args.leases)
        print()
        bench_bodies(server, args.bodies)


if __name__ == "__main__":
    main(get_args_parser().parse_args())
