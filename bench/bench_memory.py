"""Seconds and peak memory of infer.py on a very large case, as .npz and as NIfTI, with a preview.

    python bench/bench_memory.py

700 x 1024 x 1024 voxels with 10 boxes, or as the options say, by the small network of ckpt/. The
voxels are synthetic: the masks mean nothing. Needs 16 GB of disk in the temporary folder, and 10 GB
of memory to make it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import (
    ROOT,
    origin,
    print_header,
    print_row,
    run_process,
    size_text,
    write_case,
)
from utils.formats.case import read_case
from utils.inference.published import SMALL

SHAPE, SPACING = (700, 1024, 1024), (0.4, 0.4, 0.7)  # (z, y, x); (x, y, z) in mm
LIMIT_GB = 8.0


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE, help="voxels (z, y, x)")
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


def write_scan(path: Path, case_path: Path, dtype: type) -> None:
    """The case as an image in HU, with its prompts beside it."""
    case = read_case(case_path)
    values: np.ndarray = np.empty(case.shape, dtype)
    for plane, grey in zip(values, case.image, strict=True):
        plane[:] = grey * (400 / 255) - 160.0
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(case.spacing[::-1])
    sitk.WriteImage(image, str(path))
    objects = [{"box": [*o.box.start, *o.box.stop]} for o in case.objects if o.box]
    beside = path.with_name(path.name.split(".")[0] + ".json")
    beside.write_text(json.dumps({"window": "abdomen", "objects": objects}))


def main(args: argparse.Namespace) -> int:
    """Returns 1 if a run took more than LIMIT_GB."""
    print(f"{origin(args.device)}; {SMALL}\n")
    title = f"infer.py --preview, {size_text(args.shape)}, {args.objects} boxes"
    print_header(title, "seconds", "peak memory")
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = folder / "npz" / "case.npz"
        write_case(case, args.shape, SPACING, args.objects)
        for path, dtype in (
            (case, None),
            (folder / "int16.nii", np.int16),
            (folder / "float32.nii", np.float32),
        ):
            if dtype is not None:
                write_scan(path, case, dtype)
            seconds, peak = run_process(
                ROOT / "infer.py",
                *("--inputs", path, "--outputs", folder / "out", "--checkpoint"),
                *(ROOT / "ckpt" / SMALL, "--device", args.device, "--preview"),
            )
            peaks.append(peak)
            print_row(path.name, f"{seconds:.0f} s", f"{peak:.1f} GB")
            if dtype is not None:
                path.unlink()
    return int(max(peaks) > LIMIT_GB)


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
