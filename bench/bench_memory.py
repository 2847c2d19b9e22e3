"""Seconds and peak memory of infer.py on a very large case, as .npz and as NIfTI, with a preview.

    python bench/bench_memory.py

700 x 1024 x 1024 voxels with 10 boxes, or as the options say, by the small network of ckpt/. The
voxels are synthetic: the masks mean nothing. Needs 16 GB of disk in the temporary folder, and 10 GB
of memory to make it.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "bench"))

from bench_encoder import device_name  # noqa: E402
from bench_infer import run_process, write_case  # noqa: E402

from utils.formats.case import read_case  # noqa: E402
from utils.inference.published import SMALL  # noqa: E402

SHAPE, SPACING = (700, 1024, 1024), (0.4, 0.4, 0.7)  # (z, y, x); (x, y, z) in mm
LIMIT_GB = 8.0
Process = multiprocessing.get_context("spawn").Process


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
    import SimpleITK as sitk

    case = read_case(case_path)
    values = np.empty(case.shape, dtype)
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
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    print(f"{device_name(args.device)}; {SMALL}; commit {commit}\n")
    shape = " x ".join(map(str, args.shape))
    print(f"| infer.py --preview, {shape}, {args.objects} boxes | seconds | peak memory |")
    print("|---|---|---|")
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = folder / "npz" / "case.npz"
        write_case(case, tuple(args.shape), SPACING, objects=args.objects)
        for path, dtype in (
            (case, None),
            (folder / "int16.nii", np.int16),
            (folder / "float32.nii", np.float32),
        ):
            if dtype is not None:
                # In a process of its own: a child's peak begins with the memory of its parent.
                maker = Process(target=write_scan, args=(path, case, dtype))
                maker.start()
                maker.join()
            seconds, peak = run_process(
                ROOT / "infer.py",
                *("--inputs", path, "--outputs", folder / "out", "--checkpoint"),
                *(ROOT / "ckpt" / SMALL, "--device", args.device, "--preview"),
            )
            peaks.append(peak)
            print(f"| {path.name} | {seconds:.0f} s | {peak:.1f} GB |", flush=True)
            if dtype is not None:
                path.unlink()
    return int(max(peaks) > LIMIT_GB)


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
