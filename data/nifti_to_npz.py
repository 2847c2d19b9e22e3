"""Turn image and label pairs of an nnU-Net folder into challenge cases.

    python data/nifti_to_npz.py --input Dataset007_Pancreas --output 3D_train_npz_all \\
        --modality CT --dataset Pancreas

reads imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz, or what else SimpleITK reads, and writes
MODALITY/MODALITY_DATASET/MODALITY_DATASET_CASE.npz below --output, with imgs (uint8), gts, spacing
(x, y, z) and boxes. Volumes are turned to LPS: a growing index leads to the patient's left, back
and head. CT is windowed, anything else scaled between percentiles.
"""

import argparse
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.evaluation.simulated_prompts import challenge_boxes
from utils.formats.atomic import atomic_write
from utils.formats.case import label_values
from utils.formats.images import read_pair
from utils.formats.intensity import CT_WINDOWS, to_grey


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="folder of the nnU-Net data set")
    parser.add_argument("--output", type=Path, required=True, help="folder for the cases")
    parser.add_argument(
        "--modality",
        required=True,
        choices=("CT", "MR", "PET", "US", "Microscopy"),
        help="CT, in HU, is windowed; others are scaled between percentiles",
    )
    parser.add_argument("--dataset", required=True, help="name for the data set")
    parser.add_argument("--channel", type=int, default=0, help="which of an image's channels")
    parser.add_argument(
        "--window",
        choices=CT_WINDOWS,
        default="abdomen",
        help="what a CT shows: "
        + ", ".join(f"{k} (level {v[0]:g}, width {v[1]:g} HU)" for k, v in CT_WINDOWS.items()),
    )
    parser.add_argument(
        "--split",
        choices=("Tr", "Ts"),
        default="Tr",
        help="imagesTr or imagesTs",
    )
    return parser


def find_pairs(folder: Path, split: str, channel: int) -> list[tuple[str, Path, Path]]:
    """Names of the cases that have labels, their images and labels; an image may be missing."""
    pairs = []
    for labels in sorted((folder / f"labels{split}").iterdir()):
        ending = ".nii.gz" if labels.name.endswith(".nii.gz") else labels.suffix
        name = labels.name.removesuffix(ending)
        if ending and not name.startswith("."):
            image = folder / f"images{split}" / f"{name}_{channel:04d}{ending}"
            pairs.append((name, image, labels))
    return pairs


def convert(
    image_path: Path, labels_path: Path, args: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    """The arrays of a challenge case, and what the user may want to know.

    Raises:
        ValueError: Image and labels can't be used.
    """
    image, seg, spacing = read_pair(image_path, labels_path)
    if seg.dtype.kind == "f":
        if not (seg == np.rint(seg)).all():  # false for NaN, too
            raise ValueError(f"{labels_path.name}: expected whole numbers as labels")
        seg = seg.astype(np.int64)
    if seg.min() < 0:
        raise ValueError(f"{labels_path.name}: expected labels from 0 on, got {seg.min()}")
    labels = label_values(seg)
    if len(labels) == 0:
        raise ValueError(f"{labels_path.name}: expected labels, got none")
    try:
        window = CT_WINDOWS[args.window] if args.modality == "CT" else None
        grey, notices = to_grey(image, window)
    except ValueError as error:
        raise ValueError(f"{image_path.name}: {error}") from error
    # From the name: the same boxes whatever else is in the folder.
    seed = zlib.crc32(labels_path.name.encode())
    arrays = {
        "imgs": grey,
        "gts": seg.astype(np.min_scalar_type(int(labels[-1]))),
        "spacing": np.array(spacing[::-1], np.float64),
        "boxes": challenge_boxes(seg, labels.tolist(), seed),
    }
    return arrays, notices


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, 1 if a case failed, 2 if there are none."""
    if not (args.input / f"labels{args.split}").is_dir():
        print(f"--input {args.input}: expected a folder labels{args.split} in it", file=sys.stderr)
        return 2
    pairs = find_pairs(args.input, args.split, args.channel)
    if not pairs:
        print(f"no cases in {args.input / f'labels{args.split}'}", file=sys.stderr)
        return 2
    dataset = f"{args.modality}_{args.dataset}"
    folder = args.output / args.modality / dataset
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    bar = tqdm(pairs, unit="case", disable=not sys.stderr.isatty())
    for name, image_path, labels_path in bar:
        try:
            arrays, notices = convert(image_path, labels_path, args)
            with atomic_write(folder / f"{dataset}_{name}.npz") as file:
                np.savez_compressed(file, **arrays)
        except (OSError, ValueError) as error:  # a case that fails does not stop the others
            bar.write(f"FAILED {name}: {error}", file=sys.stderr)
            failed += 1
            continue
        for notice in notices:
            bar.write(f"{name}: {notice}", file=sys.stderr)
    print(f"{len(pairs) - failed} cases in {folder}, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
