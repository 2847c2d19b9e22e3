"""Play the challenge's protocol (boxes, then 5 clicks per object) on a folder of cases."""

import argparse
import hashlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.evaluation.command import command_predictor
from utils.evaluation.metrics import auc
from utils.evaluation.protocol import Round, RoundPredictor, play, timed_predictor
from utils.evaluation.report.folder import Folder
from utils.evaluation.report.page import write_report
from utils.evaluation.report.results import Result, collect, write_segs
from utils.evaluation.report.slices import cut_slices
from utils.formats.case import read_labelled_case
from utils.formats.npz import CaseError, fingerprint
from utils.inference.checkpoint import read_checkpoint
from utils.inference.load import checkpoint_path, load_model
from utils.options import add_model_options, int_from, model_defaults
from utils.runtime.distributed import Workers, run_local
from utils.runtime.launch import check_launch, is_launched
from utils.runtime.lock import locked

ROOT = Path(__file__).resolve().parent
# Code of which no result depends: a change there is no reason to compute again.
NOT_HASHED = (
    *(f"utils/evaluation/report/{name}.py" for name in ("folder", "page", "pictures")),
    "utils/training/",
    "utils/data_paths.py",
)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Several GPUs or nodes: torchrun evaluate.py ..., --outputs on a shared disk.",
    )
    parser.add_argument(
        "--cases",
        type=Path,
        required=True,
        help="one .npz case, or a folder of them, nested or not",
    )
    parser.add_argument(
        "--gts", type=Path, help="folder of truth, files named as the cases; default: in the cases"
    )
    parser.add_argument(
        "--outputs", type=Path, required=True, help="folder of the report; finished cases are kept"
    )
    parser.add_argument(
        "--command",
        help='another method: "sh predict.sh" or whatever else turns inputs/ into outputs/',
    )
    parser.add_argument(
        "--save",
        choices=("all", "final", "none"),
        default="all",
        help="predictions of all rounds, as officially, of the last one, or none",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=90.0,
        help="seconds per object over all rounds; what comes later counts as empty; 0: no limit",
    )
    parser.add_argument(
        "--jobs", type=int_from(1, 256), default=1, help="processes that share the cases, on a CPU"
    )
    parser.add_argument(
        "--restart", action="store_true", help="forget what --outputs holds, and begin anew"
    )
    add_model_options(parser)
    return parser


@dataclass(frozen=True)
class Entry:
    """A case to evaluate: its path below the folder of cases, its file, and that of its truth."""

    name: str
    path: Path
    truth_path: Path | None


Method = Callable[[Entry], AbstractContextManager[RoundPredictor]]  # begins anew with each case


def find_entries(cases: Path, gts: Path | None) -> list[Entry]:
    """The cases below a folder; their truth in `gts` under the same path, or the same name."""
    folder = cases.parent if cases.is_file() else cases
    paths = [cases] if cases.is_file() else sorted(cases.rglob("*.npz"))
    entries = []
    for path in paths:
        name = path.relative_to(folder)
        truth_path = None
        if gts is not None:
            truth_path = gts / name if (gts / name).is_file() else gts / name.name
        entries.append(Entry(name.as_posix(), path, truth_path))
    return entries


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError where the options don't go together."""
    if args.command is not None:
        defaults = model_defaults()
        given = [name for name, default in defaults.items() if getattr(args, name) != default]
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{names}: with --command, give it to the command")
    if args.time_limit < 0:
        raise ValueError(f"--time-limit: expected 0 or more, got {args.time_limit:g}")
    if args.gts is not None and not args.gts.is_dir():
        raise ValueError(f"--gts {args.gts}: expected a folder")
    if args.cases.is_dir() and args.outputs.resolve().is_relative_to(args.cases.resolve()):
        raise ValueError(f"--outputs {args.outputs}: expected a folder outside of --cases")


def prepare(folder: Folder, args: argparse.Namespace) -> int:
    """Make the folder of the report -> exit status 0, or 2 if results can't be kept there."""
    try:
        folder.prepare(result_settings(args), run_details(args), args.restart)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def result_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What results depend on; those of different settings are not mixed."""
    settings: dict[str, Any] = {"time_limit": args.time_limit}
    if args.command is not None:
        settings["command"] = args.command
    else:
        path = checkpoint_path(args)
        with open(path, "rb") as file:
            settings["checkpoint"] = hashlib.file_digest(file, "sha256").hexdigest()
        settings |= {key: getattr(args, key) for key in ("policy", "seed", "precision", "backend")}
        if args.policy == "auto":
            settings["policy"] = read_checkpoint(path).policy
    settings["code"] = hash_code(ROOT)
    return settings


def hash_code(root: Path) -> str:
    """SHA-256 of all code below `root` that results may depend on."""
    code = hashlib.sha256()
    for source in sorted([*root.glob("utils/**/*.py"), *root.glob("segment_anything/**/*.py")]):
        if not source.relative_to(root).as_posix().startswith(NOT_HASHED):
            code.update(source.read_bytes())
    return code.hexdigest()


def run_details(args: argparse.Namespace) -> dict[str, str]:
    """What the report tells beside the settings: method, commit and date."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    method = args.command or checkpoint_path(args).name
    return {"method": method, "commit": commit, "date": time.strftime("%Y-%m-%d")}


def make_method(args: argparse.Namespace, folder: Folder) -> Method:
    """The command, started anew for each case, or this repository's network, loaded once.

    Raises:
        OSError: There is no checkpoint.
        ValueError: The checkpoint or the device can't be used.
    """
    if args.command is not None:
        return lambda entry: command_predictor(args.command, entry.path, folder.log(entry.name))
    _, segment = load_model(args)
    return lambda entry: nullcontext(timed_predictor(segment))


def evaluate_case(entry: Entry, method: Method, folder: Folder, args: argparse.Namespace) -> Result:
    """Play the protocol on a case, unless that is done; keep what comes out.

    Raises:
        CaseError: The case or its truth can't be used.
        OSError: A file can't be read or written.
    """
    if entry.truth_path is not None and not entry.truth_path.is_file():
        raise CaseError(f"{entry.path.name}: expected its truth in {entry.truth_path}, got none")
    identity = "".join(fingerprint(p) for p in (entry.path, entry.truth_path) if p is not None)
    result = folder.finished(entry.name, identity)
    if result is not None:
        return result
    labelled = read_labelled_case(entry.path, entry.truth_path)
    rounds: list[Round] = []
    segs: list[np.ndarray] = []
    with method(entry) as predict_round:
        limit = args.time_limit or math.inf
        for played, seg in play(labelled, predict_round, limit, thread_count()):
            rounds.append(played)
            segs = [*segs, seg] if args.save == "all" else [seg]
    if args.save != "none":
        write_segs(folder.segs(entry.name), segs, args.save == "all")
    result = collect(entry.name, labelled, rounds)
    folder.finish(result, cut_slices(labelled, segs[-1], result.typical), identity)
    return result


def thread_count() -> int:
    """Threads for clicks and scores; more than these wait for each other."""
    return min(4, int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))


def summary_line(result: Result, seconds: float) -> str:
    """What is printed of a case that took so many seconds."""
    curve = result.curve("DSC")
    first = curve[0 if result.has_boxes else 1]
    line = (
        f"{result.name}: objects {len(result.labels)}, DSC {first:.3f} -> {curve[-1]:.3f}, "
        f"DSC_AUC {auc(curve):.3f}, NSD {result.curve('NSD_official')[-1]:.3f}, "
        f"{result.seconds_per_object:.1f} s per object, {seconds:.1f} s in all"
    )
    failed = [str(i) for i, failure in enumerate(result.failures) if failure]
    return f"{line}, FAILED in rounds {', '.join(failed)}" if failed else line


def main(args: argparse.Namespace) -> int:
    """Evaluate the cases and write the report.

    Returns:
        The exit status: 0, 1 if a case or a prediction failed, 2 if nothing can be done. Of several
        processes the first one tells whether one failed.
    """
    try:
        check_launch("evaluate.py")
        check_args(args)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    entries = find_entries(args.cases, args.gts)
    if not entries:
        print(f"no cases: expected .npz files in {args.cases}", file=sys.stderr)
        return 2
    if args.jobs > 1 and not is_launched():
        return run_local(args.jobs, [__file__, *sys.argv[1:]])
    folder, workers = Folder(args.outputs), Workers()
    with ExitStack() as held:
        status = workers.agree(lambda: hold(held, args.outputs) or prepare(folder, args))
        return status or evaluate(entries, folder, workers, args)


def hold(held: ExitStack, outputs: Path) -> int:
    """Lock the folder until the stack ends; returns the exit status: 2 if another has it."""
    try:
        outputs.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(outputs, "--outputs"))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def evaluate(
    entries: list[Entry], folder: Folder, workers: Workers, args: argparse.Namespace
) -> int:
    """Evaluate this process's share of the cases, and write the report; returns the exit status."""
    try:
        method = make_method(args, folder)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    is_quiet = workers.count > 1 or not sys.stderr.isatty()
    bar = tqdm(workers.share(entries), total=len(entries), unit="case", disable=is_quiet)
    for entry in bar:
        start = time.perf_counter()
        try:
            result = evaluate_case(entry, method, folder, args)
            bar.write(summary_line(result, time.perf_counter() - start))
        except Exception as error:  # a case that fails does not stop the others
            if not isinstance(error, CaseError):  # its message says all, and names the case
                bar.write(traceback.format_exc(), file=sys.stderr, end="")
            bar.write(f"NOT EVALUATED {entry.name}: {error}", file=sys.stderr)
            folder.fail(entry.name, str(error))
    return write_report(folder, [entry.name for entry in entries]) if workers.finish() else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # stop commands, too
    sys.exit(main(get_args_parser().parse_args()))
