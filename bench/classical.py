"""Classical methods on the same prompts, as a method for evaluate.py to compare with.

    python evaluate.py --cases val --outputs results/random_walker --command \
        "python bench/classical.py --method random_walker"
    python bench/compare_results.py results/region_growing results/random_walker results/small

Turns inputs/*.npz into outputs/*.npz. Needs scikit-image (requirements-dev.txt).
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.measure import label as connected_regions
from skimage.segmentation import random_walker as walk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from segment_anything.bounds import around, roi_of
from segment_anything.patches import Patch, assemble
from segment_anything.predictor3D import Canvas
from segment_anything.prompts import Prompts
from segment_anything.roi import Roi, crop_roi_averaged
from utils.formats.case import Case, read_case, write_case

SIZE = 40  # voxels along each side of the ROI
BOX_FACTOR = 1.25  # sides of the ROI over those of the box
CLICKED = 60.0  # mm, sides of the ROI where there is no box
CORE = 0.6  # sides over those of the box, of the ellipsoid that is taken for foreground
CLICK_RADIUS = 1.5  # voxels of the ROI, taken to be as the click says
BETA = 1000.0  # the random walker's; better than scikit-image's 130 here
TOLERANCES = np.linspace(0.25, 3.0, 12)  # in standard deviations of the seeds' grey values
FILL = 0.52  # share of its box that an ellipsoid fills: pi / 6

Method = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def choose_roi(prompts: Prompts, case: Case) -> Roi | None:
    """The ROI round the box, or round the first foreground click; None without either."""
    if prompts.box is not None:
        bounds = around(np.array([prompts.box.start, prompts.box.stop], float), BOX_FACTOR)
    else:
        points = [click.point for click in prompts.clicks if click.is_foreground]
        if not points:
            return None
        core = np.add.outer([0.0, 1.0], points[0])
        bounds = around(core, 0.0, np.minimum(CLICKED / np.array(case.spacing), case.shape))
    return roi_of(bounds, SIZE, 1, case.shape)


def seeds_in(prompts: Prompts, roi: Roi) -> tuple[np.ndarray, np.ndarray]:
    """(S, S, S) int: 1 foreground, 2 background, 0 to be found; and bool: where 1 may be."""
    grid = np.stack(np.meshgrid(*[np.arange(roi.size)] * 3, indexing="ij"), axis=-1)
    position = (grid + roi.start + 0.5) * roi.step  # in original voxels
    seeds = np.zeros([roi.size] * 3, np.int32)
    allowed = np.ones_like(seeds, bool)
    if prompts.box is not None:
        start, stop = np.array(prompts.box.start), np.array(prompts.box.stop)
        from_middle = (position - (start + stop) / 2) / ((stop - start) / 2)
        allowed = (np.abs(from_middle) <= 1).all(axis=-1)
        seeds[(from_middle**2).sum(axis=-1) <= CORE**2] = 1
    else:
        allowed[[0, -1]] = allowed[:, [0, -1]] = allowed[:, :, [0, -1]] = False
    for click in prompts.clicks:
        voxel = (np.array(click.point) + 0.5) / roi.step - 0.5 - roi.start
        near = ((grid - voxel) ** 2).sum(axis=-1) <= CLICK_RADIUS**2
        seeds[near] = 1 if click.is_foreground else 2
        allowed |= near & click.is_foreground
    seeds[~allowed] = 2
    return seeds, allowed


def random_walker(image: np.ndarray, seeds: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Voxels from where a random walker reaches the foreground seeds first (Grady 2006)."""
    if not (seeds == 0).any():
        return seeds == 1
    return walk(image, seeds, beta=BETA, mode="cg_j", tol=1e-3) == 1


def region_growing(image: np.ndarray, seeds: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Voxels with grey values within a tolerance of those at a seed, and connected with it.

    The tolerance is the one whose region comes closest to what an ellipsoid fills of the box.
    """
    foreground, background = seeds == 1, seeds == 2
    smooth = ndimage.gaussian_filter(image, 0.7)
    parts = connected_regions(foreground)  # the middle of the box, and clicks apart from it
    greys = [float(np.median(smooth[parts == part])) for part in range(1, parts.max() + 1)]
    spread = max(float(smooth[foreground].std()), 0.02)
    best, best_error = foreground, np.inf
    for tolerance in TOLERANCES:
        alike = np.min([np.abs(smooth - grey) for grey in greys], axis=0) <= tolerance * spread
        regions = connected_regions((alike & ~background) | foreground, connectivity=1)
        grown = np.isin(regions, np.unique(regions[foreground]))
        error = abs(np.count_nonzero(grown) - FILL * np.count_nonzero(allowed))
        if error < best_error:
            best, best_error = grown, error
    filled = ndimage.binary_fill_holes(ndimage.binary_opening(best) | foreground)
    return filled & ~background


METHODS: dict[str, Method] = {
    "random_walker": random_walker,
    "region_growing": region_growing,
}


def segment(case: Case, method: str) -> np.ndarray:
    """The (D, H, W) uint8 labels that one of METHODS finds."""
    canvas = Canvas(case.shape)
    for label, prompts in enumerate(case.objects, 1):
        roi = choose_roi(prompts, case)
        if roi is None:
            continue
        image = crop_roi_averaged(case.image, roi).numpy()
        low, high = np.percentile(image, (1, 99))
        image = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
        mask = np.zeros_like(image, bool)
        seeds, allowed = seeds_in(prompts, roi)
        if (seeds == 1).any():
            mask = METHODS[method](image, seeds, allowed)
        patch = Patch(roi, np.where(mask, np.float32(1), np.float32(-1)))
        canvas.paint(label, assemble([patch], case.shape, 1.0))
    return canvas.seg


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--inputs", type=Path, default=Path("inputs"))
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    return parser


def main(args: argparse.Namespace) -> None:
    args.outputs.mkdir(parents=True, exist_ok=True)
    for path in sorted(args.inputs.glob("*.npz")):
        write_case(args.outputs / path.name, segment(read_case(path), args.method))


if __name__ == "__main__":
    main(get_args_parser().parse_args())
