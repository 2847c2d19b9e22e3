"""All that a machine with one GPU is to tell, part after part, within a time.

    python bench/gpu.py --out results --data prepared_native --state results_before
    python bench/gpu.py --out results --dry-run

Tests that need a GPU; encoder and inference beside medim's network; the published training step;
how many samples a second the adaptive recipe trains on; and, with the time that is left, a training
run that goes on from --state and leaves its own state in --out. A part that fails, or takes longer
than it may, is named, and the others go on. --dry-run does it on a CPU with tiny sizes.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import ROOT, origin
from utils.training.state import LATEST

PIECE = 15_000_000  # bytes of a run's state in a file of --out
SAVING = 20  # seconds that the last part has to save its state
BATCHES = (4, 16, 32)  # of the adaptive recipe


@dataclass(frozen=True)
class Part:
    """Something to run.

    Attributes:
        title: Its heading in the table.
        command: What follows `python`.
        seconds: That it may take.
    """

    title: str
    command: list[str]
    seconds: float


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder of results")
    parser.add_argument("--data", type=Path, help="cases prepared with --native, to train on")
    parser.add_argument(
        "--state", type=Path, help="weights, or the folder of results of a run that is to go on"
    )
    parser.add_argument("--shapes", type=Path, nargs="+", help="as of train.py")
    parser.add_argument("--weigh", nargs="+", help="as of train.py")
    parser.add_argument("--synthetic", type=int, default=0, help="as of train.py, for the last run")
    parser.add_argument("--minutes", type=float, default=9, help="that all may take")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny sizes")
    return parser


def parts_of(is_dry: bool) -> list[Part]:
    """What is measured before training."""
    device = ["--device", "cpu", "--tiny", "--repeats", "1"] if is_dry else ["--device", "cuda"]
    files = sorted(
        str(path.relative_to(ROOT))
        for path in ROOT.glob("tests/**/test_*.py")
        if "mark.gpu" in path.read_text("utf-8")
    )
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *files]
    return [
        Part("tests that need a GPU", tests, 120),
        Part("image encoder", ["bench/bench_encoder.py", *device], 60),
        Part("inference, the published policy", ["bench/bench_infer.py", "--quick", *device], 90),
        Part("published training step", ["bench/bench_train.py", "--steps_only", *device], 90),
    ]


def training(args: argparse.Namespace, folder: Path, batch: int, *options: str) -> list[str]:
    """A run of the adaptive recipe, as what follows `python`."""
    command = ["train.py", "--recipe", "adaptive", "--work_dir", str(folder), "--task_name", "run"]
    command += ["--data", str(args.data), "--min_voxels", "60", "--artefacts", "0"]
    command += ["--optimizer", "muon", "--lr", "1.5e-3", "--others_lr", "1"]
    command += ["--batch_size", str(batch), "--accumulation_steps", "1", *options]
    size = ["--img_size", "16"] if args.dry_run and not args.state else []
    return [*command, "--device", "cpu" if args.dry_run else "cuda", *size]


def run_part(part: Part, log: Path) -> tuple[str, bool]:
    """What it printed, and whether it did what it should in its time."""
    with open(log, "w") as file:
        try:
            done = subprocess.run(
                [sys.executable, *part.command],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=part.seconds,
            )
            ending = "" if done.returncode == 0 else f"FAILED with exit status {done.returncode}"
        except subprocess.TimeoutExpired:
            ending = f"STOPPED after {part.seconds:.0f} s"
    return f"{log.read_text()}\n{ending}".strip(), not ending


def rates(args: argparse.Namespace, folder: Path, end: float) -> tuple[str, bool]:
    """The table of samples per second, of the second of two epochs for each batch size."""
    rows, is_good = ["| batch | samples per second | peak memory |", "|---|---|---|"], True
    for batch in BATCHES[:1] if args.dry_run else BATCHES:
        where = folder / f"batch_{batch}"
        options = ["--model_type", "hybrid_s", "--num_epochs", "2"]
        part = Part("", training(args, where, batch, *options), max(end - time.monotonic(), 1))
        text, is_done = run_part(part, folder / f"batch_{batch}.log")
        if is_done:
            with open(where / "run" / "log.csv") as file:
                *_, row = csv.DictReader(file)
            rows.append(f"| {batch} | {row['samples_per_second']} | {row['peak_gb']} GB |")
        else:
            rows.append(f"| {batch} | {text.splitlines()[-1]} | |")
        is_good &= is_done
    return "\n".join(rows), is_good


def train(args: argparse.Namespace, folder: Path, end: float) -> tuple[str, bool]:
    """Train until SAVING seconds before `end`, and leave the state and the weights in --out."""
    options = ["--num_epochs", "1" if args.dry_run else "100000", "--resume"]
    options += ["--synthetic", str(args.synthetic)]
    options += ["--shapes", *map(str, args.shapes)] if args.shapes else []
    options += ["--weigh", *args.weigh] if args.weigh else []
    if args.state and args.state.is_dir():
        state = folder / "run" / LATEST
        state.parent.mkdir(parents=True)
        pieces = sorted(args.state.glob(f"{LATEST}.*"))
        state.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    elif args.state:
        options += ["--checkpoint", str(args.state)]
    else:
        options += ["--model_type", "hybrid_s"]
    command = [sys.executable, *training(args, folder, 32, *options)]
    log = args.out / "training.log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            process.wait(max(end - SAVING - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
    state = folder / "run" / LATEST
    is_good = process.returncode in (0, 128 + signal.SIGTERM) and state.exists()
    if is_good:
        content = state.read_bytes()
        for number, first in enumerate(range(0, len(content), PIECE)):
            (args.out / f"{LATEST}.{number:02}").write_bytes(content[first : first + PIECE])
        weights = args.out / "trained.safetensors"
        export = [sys.executable, "ckpt/export.py", str(state), str(weights.resolve())]
        is_good = subprocess.run(export, cwd=ROOT).returncode == 0
    lines = log.read_text().splitlines()
    return "\n".join(line for line in lines[-4:] if line), is_good


def main(args: argparse.Namespace) -> int:
    """Returns the exit status, 1 if a part failed."""
    end = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True)
    args.out, args.data, args.state = (p and p.resolve() for p in (args.out, args.data, args.state))
    args.shapes = [path.resolve() for path in args.shapes or ()]
    title = f"# {origin('cpu' if args.dry_run else 'cuda')}"
    found = [title + ("; tiny sizes: what is measured means nothing" if args.dry_run else "")]
    failed = []

    def add(title: str, text: str, is_good: bool) -> None:
        found.append(f"## {title}\n\n{text}")
        (args.out / "table.md").write_text("\n\n".join(found) + "\n")
        if not is_good:
            failed.append(title)

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for number, part in enumerate(parts_of(args.dry_run)):
            add(part.title, *run_part(part, work / f"part_{number}.log"))
        if args.data:
            share = 0.4 * (end - time.monotonic())
            add("adaptive recipe, hybrid_s", *rates(args, work, time.monotonic() + share))
            add("training", *train(args, work, end))
    if failed:
        add("FAILED", ", ".join(failed), True)
    print((args.out / "table.md").read_text())
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(get_args_parser().parse_args()))
