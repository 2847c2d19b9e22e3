"""Training cases, and runs of train.py, for the tests."""

import csv
import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch

import train as train_script
from conftest import ROOT, case_arrays
from utils.formats.prepared import write_prepared

OPTIONS = ["--batch_size=1", "--accumulation_steps=2", "--num_epochs=2", "--min_voxels=20"]
OPTIONS += ["--num_workers=0", "--device=cpu", "--lr=1e-3"]
NATIVE_SHAPE, NATIVE_SPACING = (24, 50, 70), (3.0, 1.0, 0.7)


def write_cases(folder: Path, count: int = 5) -> Path:
    """Prepared cases of a bright block in noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        gts = np.zeros((22, 27, 35), np.uint8)
        z, y, x = rng.integers(2, 8, 3)
        gts[z : z + 9, y : y + 12, x : x + 15] = 1
        image = rng.integers(1, 80, gts.shape) + 150 * gts
        write_prepared(folder / f"{i}.npz", image.astype(np.uint8), gts, (1.5,) * 3, b"")
    return folder


def native_volumes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A bright ellipsoid, a dark tube and a speck in noise."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[tuple(slice(n) for n in NATIVE_SHAPE)]
    gts = np.zeros(NATIVE_SHAPE, np.uint8)
    gts[((z - 11) / 7) ** 2 + ((y - 20) / 12) ** 2 + ((x - 25) / 15) ** 2 <= 1] = 4
    gts[np.broadcast_to(((y - 38) / 5) ** 2 + ((x - 55) / 6) ** 2 <= 1, NATIVE_SHAPE)] = 9
    gts[0, 0, :5] = 2
    image = rng.integers(60, 120, NATIVE_SHAPE) + np.array([0, 0, 0, 0, 80, 0, 0, 0, 0, -50])[gts]
    return image.astype(np.uint8), gts


def write_native_cases(folder: Path, count: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image, gts = native_volumes(i)
        write_prepared(folder / f"{i}.npz", image, gts, NATIVE_SPACING, b"", is_native=True)
    return folder


def command(weights: Path | str, data: Path, folder: Path, *options: str) -> list[str]:
    own = ["--checkpoint", weights, "--data", data, "--work_dir", folder, "--task_name", "run"]
    return [*map(str, [ROOT / "train.py", *own]), *OPTIONS, *options]


def start(arguments: list[str], **options) -> subprocess.Popen:
    """Its results depend on the number of threads, in the last bits."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        **options,
    )


def train_in_own_process(*args) -> subprocess.CompletedProcess:
    process = start(command(*args), stderr=subprocess.PIPE)
    output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def train(*args) -> subprocess.CompletedProcess:
    """The same in this process."""
    arguments, output, errors = command(*args)[1:], io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            status = train_script.main(train_script.get_args_parser().parse_args(arguments))
    except SystemExit as error:  # of argparse
        status = error.code
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def log_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "run/log.csv", newline="") as file:
        return list(csv.DictReader(file))


def numbers(folder: Path) -> list[tuple[float, float, float]]:
    return [(float(r["loss"]), float(r["dice"]), float(r["lr"])) for r in log_of(folder)]


def content_of(folder: Path, which: str = "latest") -> dict:
    return torch.load(folder / f"run/sam_model_{which}.pth", weights_only=True)


def write_val_case(folder: Path) -> Path:
    """A case with gts of two objects, in a new folder."""
    folder.mkdir(parents=True)
    gts = np.zeros(case_arrays()["imgs"].shape, np.uint8)
    gts[2:7, 3:9, 4:11], gts[:3, :, 9:] = 1, 2
    np.savez_compressed(folder / "case.npz", **case_arrays(gts=gts))
    return folder
