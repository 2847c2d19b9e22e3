"""Make the two sample cases, an MR brain and a lung CT, from two openly licensed packages.

With --atlas also the whole brain with all regions of its atlas, as a case to train on.

Fetch and unpack the sources, then run this script:

    apt-get download mricron-data
    dpkg-deb -x mricron-data_*.deb mricron
    pip download --no-deps --no-build-isolation --no-binary :all: pyradiomics==3.0.1
    tar xzf pyradiomics-3.0.1.tar.gz
    python data/make_sample_cases.py --mricron mricron --pyradiomics pyradiomics-3.0.1

pip runs the setup.py of pyradiomics for its metadata, which needs numpy and setuptools installed.
Both packages are under a 3-clause BSD licence, see data/sample_gts/README.md. The same sources give
the same arrays.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.evaluation.simulated_prompts import challenge_boxes
from utils.formats.images import read_pair
from utils.formats.intensity import CT_WINDOWS, scale_percentiles, scale_window

ROOT = Path(__file__).resolve().parents[1]
# The AAL regions of object 1, 2, ..., by how their names begin; "Cerebelum" is AAL's spelling.
# No hippocampus: it runs aslant, so a box from its middle slice misses up to half of it.
BRAIN_OBJECTS = (
    ("Thalamus_L",),
    ("Thalamus_R",),
    ("Putamen_L",),
    ("Putamen_R",),
    ("Caudate_L",),
    ("Caudate_R",),
    ("Cerebelum_", "Vermis_"),
)
# The crops keep the files small.
BRAIN_MARGIN_MM = 5.0  # around all regions of the atlas
TUMOUR_MARGIN_MM = 70.0  # leaves about the 192 mm that the model sees

SEED = 2025  # draws the shifts of the boxes, anew for each case


@dataclass(frozen=True)
class Sample:
    """One case with its truth.

    Attributes:
        image: (D, H, W) = (z, y, x) uint8, 0..255.
        seg: (D, H, W) uint8 labels 1..n, 0 background.
        spacing: (z, y, x) in mm.
    """

    image: np.ndarray
    seg: np.ndarray
    spacing: tuple[float, float, float]


def region_around(
    mask: np.ndarray, margin_mm: float, spacing: tuple[float, float, float]
) -> tuple[slice, ...]:
    """The bounding box of a (D, H, W) mask with a margin, as far as the volume goes."""
    margin = np.ceil(margin_mm / np.array(spacing)).astype(int)
    voxels = np.argwhere(mask)
    start = np.maximum(voxels.min(axis=0) - margin, 0)
    stop = np.minimum(voxels.max(axis=0) + 1 + margin, mask.shape)
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True))


def read_atlas(mricron: Path) -> tuple[Sample, dict[str, int]]:
    """Colin27 (`ch2`, T1, 1 mm) with the AAL atlas, which was drawn on it, and its labels."""
    templates = mricron / "usr/share/mricron/templates"
    image, regions, spacing = read_pair(templates / "ch2.nii.gz", templates / "aal.nii.gz")
    # A line of the list: "77 Thalamus_L 7101", the first number being the value in aal.nii.gz.
    lines = (templates / "aal.nii.txt").read_text("ascii").splitlines()
    labels = {line.split()[1]: int(line.split()[0]) for line in lines if line.strip()}
    keep = region_around(regions > 0, BRAIN_MARGIN_MM, spacing)
    seg = regions.astype(np.uint8)
    return Sample(scale_percentiles(image)[keep], seg[keep], spacing), labels


def read_brain(mricron: Path) -> Sample:
    """The atlas's image with BRAIN_OBJECTS alone."""
    atlas, labels = read_atlas(mricron)
    seg = np.zeros_like(atlas.seg)
    for label, beginnings in enumerate(BRAIN_OBJECTS, 1):
        values = [value for name, value in labels.items() if name.startswith(beginnings)]
        seg[np.isin(atlas.seg, values)] = label
    return replace(atlas, seg=seg)


def read_lung(pyradiomics: Path) -> Sample:
    """The chest CT `lung2` with its tumour; 5 mm slices."""
    folder = pyradiomics / "data"
    image, labels, spacing = read_pair(folder / "lung2_image.nrrd", folder / "lung2_label.nrrd")
    seg = (labels > 0).astype(np.uint8)
    keep = region_around(seg > 0, TUMOUR_MARGIN_MM, spacing)
    return Sample(scale_window(image, *CT_WINDOWS["abdomen"])[keep], seg[keep], spacing)


def write_sample(sample: Sample, input_path: Path, gts_path: Path) -> None:
    """Write a case and its truth as the challenge stores them; spacing becomes (x, y, z)."""
    boxes = challenge_boxes(sample.seg, range(1, sample.seg.max() + 1), SEED)
    spacing = np.array(sample.spacing[::-1], np.float64)
    np.savez_compressed(input_path, imgs=sample.image, spacing=spacing, boxes=boxes)
    np.savez_compressed(gts_path, gts=sample.seg, spacing=spacing)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mricron", type=Path, required=True, help="folder of the unpacked mricron-data"
    )
    parser.add_argument(
        "--pyradiomics", type=Path, required=True, help="folder of the unpacked pyradiomics source"
    )
    parser.add_argument("--atlas", type=Path, help=".npz file to write, with imgs, gts, spacing")
    parser.add_argument("--inputs", type=Path, default=ROOT / "inputs", help="folder for the cases")
    parser.add_argument(
        "--gts", type=Path, default=ROOT / "data/sample_gts", help="folder for their truths"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    args.inputs.mkdir(parents=True, exist_ok=True)
    args.gts.mkdir(parents=True, exist_ok=True)
    for name, sample in (
        ("MR_Brain_colin27.npz", read_brain(args.mricron)),
        ("CT_LungTumour_pyradiomics.npz", read_lung(args.pyradiomics)),
    ):
        write_sample(sample, args.inputs / name, args.gts / name)
        size = sum((folder / name).stat().st_size for folder in (args.inputs, args.gts))
        print(f"{name}: {sample.image.shape}, {sample.seg.max()} objects, {size / 1e6:.2f} MB")
    if args.atlas:
        atlas, labels = read_atlas(args.mricron)
        args.atlas.parent.mkdir(parents=True, exist_ok=True)
        spacing = np.array(atlas.spacing[::-1], np.float64)
        np.savez_compressed(args.atlas, imgs=atlas.image, gts=atlas.seg, spacing=spacing)
        print(f"{args.atlas.name}: {atlas.image.shape}, {len(labels)} regions")


if __name__ == "__main__":
    main(get_args_parser().parse_args())
