"""Prepare the challenge's training cases: MODALITY/DATASET/CASE.npz at 1.5 mm, to be read in crops.

    python data/resample_preprocess_for_CVPR_3DFM.py --input 3D_train_npz_all \\
        --output 3D_train_npz_prepared --workers 8

Every .npz file below --input goes to the same place below --output. Images are interpolated
linearly, labels take the nearest voxel. What is there already, made from the same source in the
same way, is kept, so that an interrupted run goes on. Cases that can't be used are listed in
failed.tsv of --output, and the others go on.
"""

import argparse
import hashlib
import math
import multiprocessing
import os
import shutil
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.formats.atomic import atomic_write
from utils.formats.case import read_geometry, read_volumes
from utils.formats.npz import MAX_VOLUME_BYTES, CaseError, fingerprint
from utils.formats.prepared import source_of, write_prepared
from utils.formats.resample import zoom_linear, zoom_nearest, zoomed_shape

VERSION = 1  # of the content of prepared files; with another one all cases are prepared anew


@dataclass(frozen=True)
class Task:
    """A case to prepare.

    Attributes:
        name: Its path below the folders.
        path: The source.
        target: The prepared case.
        spacing: Voxel side of the prepared case in mm; None: the grid of the source is kept.
        source: Digest of the source and of how it is prepared.
        size: Bytes that the prepared case has at most.
    """

    name: str
    path: Path
    target: Path
    spacing: float | None
    source: bytes
    size: int


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="folder of cases with gts")
    parser.add_argument("--output", type=Path, required=True, help="folder of prepared cases")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes; each holds one case, before and after",
    )
    parser.add_argument(
        "--spacing", type=float, default=1.5, help="mm of the prepared cases, as inference uses"
    )
    parser.add_argument(
        "--native",
        action="store_true",
        help="keep the grid of each case: for train.py --recipe adaptive",
    )
    return parser


def plan(path: Path, args: argparse.Namespace) -> Task:
    """What is to be done for a case.

    Raises:
        CaseError: The case can't be used.
        OSError: It can't be read.
    """
    target = None if args.native else args.spacing
    shape, label_bytes, spacing = read_geometry(path)
    try:
        target_shape = shape if target is None else zoomed_shape(shape, spacing, target)
    except OverflowError as error:
        raise CaseError(f"{path.name}: expected a spacing in mm, got {spacing}") from error
    if 0 in target_shape:
        raise CaseError(
            f"{path.name}: expected at least half a voxel of {args.spacing:g} mm along each axis, "
            f"got {shape} voxels of {spacing} mm (z, y, x)"
        )
    voxels, limit = math.prod(target_shape), MAX_VOLUME_BYTES // 4
    if voxels > limit:
        what = "voxels" if target is None else f"voxels of {target:g} mm"
        raise CaseError(
            f"{path.name}: expected at most {limit} {what}, got {voxels} from {shape} of {spacing} "
            f"mm (z, y, x)"
        )
    name = path.relative_to(args.input)
    how = f"{VERSION} {target} {fingerprint(path)}"
    source = hashlib.sha256(how.encode()).digest()
    size = voxels * (1 + min(label_bytes, 4))
    return Task(name.as_posix(), path, args.output / name, target, source, size)


def prepare(task: Task) -> str:
    """Prepare a case; returns why it can't be, or ""."""
    torch.set_num_threads(1)
    try:
        image, gts, spacing = read_volumes(task.path)
        if task.spacing is None:
            image = np.rint(image).astype(np.uint8)
        else:
            shape = zoomed_shape(image.shape, spacing, task.spacing)
            z, y, x = (
                s * (n - 1) / (m - 1) if m > 1 else s * n
                for s, n, m in zip(spacing, image.shape, shape, strict=True)
            )
            spacing = (z, y, x)
            image, gts = zoom_linear(image, shape), zoom_nearest(gts, shape)
        task.target.parent.mkdir(parents=True, exist_ok=True)
        write_prepared(task.target, image, gts, spacing, task.source, task.spacing is None)
    except CaseError as error:
        return str(error)
    except Exception as error:  # a case that fails does not stop the others
        return f"{type(error).__name__}: {error}"
    return ""


def plan_all(paths: list[Path], args: argparse.Namespace) -> tuple[list[Task], dict[str, str]]:
    """What is left to do, and the cases that can't be used."""
    tasks, failed = [], {}
    for path in tqdm(paths, "looking", unit="case", disable=not sys.stderr.isatty()):
        try:
            task = plan(path, args)
        except (CaseError, OSError) as error:
            failed[path.relative_to(args.input).as_posix()] = str(error)
            continue
        if source_of(task.target) != task.source:
            tasks.append(task)
    return tasks, failed


def ignore_interrupts() -> None:
    """Leave Ctrl-C, which reaches all processes, to the first one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_failed(path: Path, failed: dict[str, str]) -> None:
    """A line per case: its name and why it failed; no file if there are none."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    lines = (f"{name}\t{' '.join(why.split())}\n" for name, why in sorted(failed.items()))
    with atomic_write(path) as file:
        file.write("".join(lines).encode())


def prepare_all(tasks: list[Task], failed: dict[str, str], workers: int, failed_path: Path) -> int:
    """Prepare cases, and list those that fail with the others; returns the exit status."""
    # Other than forked ones, spawned workers inherit no threads of torch that hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=ignore_interrupts)
    try:
        futures = {pool.submit(prepare, task): task for task in tasks}
        bar = tqdm(as_completed(futures), total=len(futures), unit="case")
        for future in bar:
            if reason := future.result():
                failed[futures[future].name] = reason
                bar.write(f"FAILED {futures[future].name}: {reason}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped after the cases begun; run it again, and it goes on", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenProcessPool:
        print(
            "a worker was killed, perhaps for memory: run it again with fewer --workers, and it "
            "goes on",
            file=sys.stderr,
        )
        return 1
    finally:
        pool.shutdown(cancel_futures=True)
        write_failed(failed_path, failed)
    if failed:
        print(f"{len(failed)} cases failed, see {failed_path}", file=sys.stderr)
    return 1 if failed else 0


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, 1 if a case failed, 2 if nothing can be done, 130 if stopped."""
    if args.output.resolve().is_relative_to(args.input.resolve()):
        print(f"--output {args.output}: expected a folder outside of --input", file=sys.stderr)
        return 2
    if not args.spacing > 0 or args.workers < 1:
        print("--spacing and --workers: expected more than 0", file=sys.stderr)
        return 2
    paths = sorted(args.input.rglob("*.npz"))
    if not paths:
        print(f"no cases: expected .npz files in {args.input}", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    failed_path = args.output / "failed.tsv"
    tasks, failed = plan_all(paths, args)
    needed = sum(task.size for task in tasks)
    free = shutil.disk_usage(args.output).free
    replaced = sum(task.target.exists() for task in tasks)
    note = f" ({replaced} in place of ones made of other files or options)" if replaced else ""
    print(
        f"{len(paths)} cases: {len(paths) - len(tasks) - len(failed)} are there, {len(failed)} "
        f"can't be used, {len(tasks)} to do{note}, which take at most {needed / 1e9:.1f} GB of the "
        f"{free / 1e9:.1f} GB free in {args.output}",
        flush=True,
    )
    write_failed(failed_path, failed)
    if needed > free:
        print("not enough space: nothing was done", file=sys.stderr)
        return 2
    return prepare_all(tasks, failed, args.workers, failed_path)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main(get_args_parser().parse_args()))
