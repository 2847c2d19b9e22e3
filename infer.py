"""Segment every case of a folder: inputs/*.npz -> outputs/*.npz; or scans, such as NIfTI or DICOM.

One process, or several under torchrun, each on a GPU of its own, that share the cases.
"""

import argparse
import io
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from utils.formats.intensity import CT_WINDOWS, parse_window
from utils.formats.scan_prompts import SCAN_ENDINGS, add_prompt_options, join_negative
from utils.options import add_model_options
from utils.runtime.launch import check_launch
from utils.runtime.memory import peak_gb

# What needs numpy, torch or SimpleITK is imported where it is used: --help and messages about
# options come at once, and a .npz case waits for nothing that only scans need.
if TYPE_CHECKING:
    import numpy as np

    from utils.formats.case import Case
    from utils.formats.scan import Scan
    from utils.inference.method import Segmenter
    from utils.inference.sources import Source

ROOT = Path(__file__).resolve().parent


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--inputs",
        type=Path,
        default=ROOT / "inputs",
        help="folder of .npz cases and scans (.nii .nii.gz .nrrd .mha), or one of them, or the "
        "folder of a DICOM series",
    )
    parser.add_argument(
        "--outputs", type=Path, default=ROOT / "outputs", help="folder for the segmentations"
    )
    parser.add_argument(
        "--preview", action="store_true", help="a .png beside each output: planes of each object"
    )
    parser.add_argument(
        "--window",
        type=window,
        help=f"CT scans in HU: {', '.join(CT_WINDOWS)} or LEVEL,WIDTH; others are scaled between "
        "percentiles, which is the default",
    )
    parser.add_argument(
        "--output-format",
        choices=[ending[1:] for ending in SCAN_ENDINGS],
        help="format of the labels of scans; default: that of the scan, nii.gz for DICOM",
    )
    add_prompt_options(parser)
    add_model_options(parser)
    return parser


def window(text: str) -> str:
    try:
        parse_window(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def prepare_outputs(folder: Path, sources: "list[Source]") -> None:
    """Make the folder of outputs, and find out now if it can't take them.

    Raises:
        OSError: It can't be made or written.
        ValueError: Outputs would replace the cases.
    """
    for path in (source.path for source in sources):
        if folder.resolve() in (path.parent.resolve(), path.resolve().parent, path.resolve()):
            raise ValueError(f"--outputs {folder}: holds {path.name} itself, expected another one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"--outputs {folder}: can't be written: {error}") from error


def read_cases(
    sources: "Iterable[Source]",
) -> "Iterator[tuple[Source, tuple[Case, Scan | None] | Exception]]":
    """Each case, and the scan that it is made of, if it is; or why it can't be read."""
    from utils.inference.sources import read_source

    for source in sources:
        try:
            yield source, read_source(source)
        except Exception as error:  # a case that fails does not stop the others
            yield source, error


def segment_case(
    case: "Case",
    scan: "Scan | None",
    segment: "Segmenter",
    target: Path,
    preview: Path | None,
) -> "np.ndarray":
    """Segment a case and write its labels, and a picture of them if a path is given for it.

    Returns:
        (D, H, W) uint8 labels on the grid of the case.
    """
    seg = segment(case)
    if scan is None:
        from utils.formats.case import write_case

        write_case(target, seg)
    else:
        from utils.formats.scan import write_labels

        write_labels(target, seg, scan)
    if preview is not None:
        from utils.formats.scan import FILE_AXES
        from utils.inference.preview import write_preview

        write_preview(preview, case, seg, FILE_AXES if scan is None else scan.axes)
    return seg


def peak_memory(device_type: str) -> str:
    """The most memory that this process has taken so far, and that of its GPU."""
    text = f"{peak_gb():.1f} GB"
    return f"{text}, GPU {peak_gb('cuda'):.1f} GB" if device_type == "cuda" else text


def modified(path: Path) -> int | None:
    """When a file was written, in ns; None if there is none."""
    return path.stat().st_mtime_ns if path.is_file() else None


def leave(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, 1 if a case failed, 2 if there was nothing to work with.

    Of several processes the first one tells whether a case failed.
    """
    from utils.inference.sources import find_sources

    ending = f".{args.output_format}" if args.output_format else None
    try:
        check_launch("infer.py")
        sources = find_sources(
            args.inputs, args.objects, args.space, args.window, ending, args.prompts
        )
        prepare_outputs(args.outputs, sources)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2

    from prefetch_generator import BackgroundGenerator
    from tqdm import tqdm

    from utils.formats.case import missing_labels
    from utils.formats.npz import CaseError
    from utils.inference.load import load_model
    from utils.inference.method import AdaptiveSegmenter
    from utils.runtime.distributed import Workers

    workers = Workers()
    # Reading overlaps loading the model, and later computing the case before.
    cases = BackgroundGenerator(read_cases(workers.share(sources)), max_prefetch=1)
    try:
        model, segment = load_model(args)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2

    failed = []
    is_quiet = workers.count > 1 or not sys.stderr.isatty()
    bar = tqdm(cases, total=len(sources), unit="case", disable=is_quiet)
    for source, read in bar:
        name, target = source.path.name, args.outputs / source.output
        preview = args.outputs / f"{source.stem}.png" if args.preview else None
        start, before = time.perf_counter(), modified(target)
        try:
            if isinstance(read, Exception):
                raise read
            case, scan = read
            seg = segment_case(case, scan, segment, target, preview)
        except Exception as error:  # a case that fails does not stop the others
            failed.append(name)
            if not isinstance(error, CaseError | OSError):  # their messages say all
                bar.write(traceback.format_exc(), file=sys.stderr, end="")
            where = "" if isinstance(error, CaseError) else f"{name}: "  # which names the case
            is_old = before is not None and modified(target) == before
            note = f" ({source.output} in --outputs is of an earlier run)" if is_old else ""
            bar.write(f"FAILED {where}{error}{note}", file=sys.stderr)
            continue
        if scan is not None and scan.notices:
            bar.write(f"{name}: {'; '.join(scan.notices)}")
        if missing := missing_labels(seg, len(case.objects)):
            bar.write(f"{name}: nothing found of object {', '.join(map(str, missing))}")
        if isinstance(segment, AdaptiveSegmenter) and segment.doubtful:
            doubts = (f"{label} (IoU about {iou:.2f})" for label, iou in segment.doubtful.items())
            bar.write(f"{name}: probably wrong, by the network's own estimate: {', '.join(doubts)}")
        bar.write(
            f"{name}: objects {len(case.objects)}, rounds of prompts {case.rounds}, "
            f"{time.perf_counter() - start:.1f} s, peak memory {peak_memory(model.device.type)}"
        )
    failed = sorted(name for part in workers.collect(failed) for name in part)
    if failed:
        names = ", ".join(failed)
        print(f"{len(failed)} of {len(sources)} cases failed: {names}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)  # what is half written goes, as with Ctrl-C
    for stream in (sys.stdout, sys.stderr):
        # File names may hold what the terminal's encoding does not.
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    sys.exit(main(get_args_parser().parse_args(join_negative(sys.argv[1:]))))
