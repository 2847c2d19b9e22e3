"""Segment every case of a folder: inputs/*.npz -> outputs/*.npz.

One process, or several under torchrun, each on a GPU of its own, that share the cases.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from utils.memory import peak_gb
from utils.options import add_model_options, load_model
from utils.workers import Workers

# torch is imported where it is used, so that --help and messages about options come at once.
if TYPE_CHECKING:
    from utils.case import Case

ROOT = Path(__file__).resolve().parent


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--inputs", type=Path, default=ROOT / "inputs", help="folder of .npz cases, or one case"
    )
    parser.add_argument(
        "--outputs", type=Path, default=ROOT / "outputs", help="folder for the segmentations"
    )
    add_model_options(parser)
    return parser


def prepare_outputs(folder: Path, paths: list[Path]) -> None:
    """Make the folder of outputs, and find out now if it can't take them.

    Raises:
        OSError: It can't be made or written.
        ValueError: Outputs would replace the cases.
    """
    if folder.resolve() == paths[0].parent.resolve():
        raise ValueError(f"--outputs {folder}: holds the cases themselves, expected another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"--outputs {folder}: can't be written: {error}") from error


def read_cases(paths: Iterable[Path]) -> Iterator[tuple[Path, "Case | Exception"]]:
    """Each case, or why it can't be read."""
    from utils.case import read_case

    for path in paths:
        try:
            yield path, read_case(path)
        except Exception as error:  # a case that fails does not stop the others
            yield path, error


def peak_memory(device_type: str) -> str:
    """Of this process so far, and of the GPU."""
    text = f"{peak_gb():.1f} GB"
    return f"{text}, GPU {peak_gb('cuda'):.1f} GB" if device_type == "cuda" else text


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, 1 if a case failed, 2 if there was nothing to work with.

    Of several processes the first one tells whether a case failed.
    """
    if args.inputs.is_dir():
        paths = sorted(args.inputs.glob("*.npz"))
    else:
        paths = [args.inputs] if args.inputs.is_file() else []
    if not paths:
        print(f"no cases: expected .npz files in {args.inputs}", file=sys.stderr)
        return 2
    from prefetch_generator import BackgroundGenerator
    from tqdm import tqdm

    workers = Workers()
    # Reading overlaps loading the model, and later computing the case before.
    cases = BackgroundGenerator(read_cases(workers.share(paths)), max_prefetch=1)
    try:
        prepare_outputs(args.outputs, paths)
        model, segment = load_model(args)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2

    from utils.case import write_case
    from utils.npz import CaseError

    failed = []
    is_quiet = workers.count > 1 or not sys.stderr.isatty()
    bar = tqdm(cases, total=len(paths), unit="case", disable=is_quiet)
    for path, case in bar:
        start = time.perf_counter()
        try:
            if isinstance(case, Exception):
                raise case
            write_case(args.outputs / path.name, segment(case))
        except Exception as error:  # a case that fails does not stop the others
            failed.append(path.name)
            if not isinstance(error, CaseError):  # its message says all, and names the case
                bar.write(traceback.format_exc(), file=sys.stderr, end="")
            name = "" if isinstance(error, CaseError) else f"{path.name}: "
            bar.write(f"FAILED {name}{error}", file=sys.stderr)
            continue
        bar.write(
            f"{path.name}: objects {len(case.objects)}, rounds of prompts {case.rounds}, "
            f"{time.perf_counter() - start:.1f} s, peak memory {peak_memory(model.device.type)}"
        )
    parts = workers.collect("/".join(failed))
    failed = sorted(name for part in parts for name in part.split("/") if name)
    if failed:
        names = ", ".join(failed)
        print(f"{len(failed)} of {len(paths)} cases failed: {names}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
