"""What training costs: the step, the samples, the preprocessing, each beside what it replaces.

    python bench/bench_train.py --device cpu
    python bench/bench_train.py --device cuda

Step: forward and backward of all rounds of the published loop, the same on medim's network and on
this one, with the same seeded weights, ROIs and clicks; each row is a process of its own. On a CPU
train.py lets freed memory be kept. Preprocessing: beside scipy.ndimage.zoom as the original calls
it. Samples: those of the published recipe, beside what the original's dataset class does with the
same volumes as NIfTI files, by SimpleITK and TorchIO. Both on one core. Volumes are synthetic.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss
from scipy.ndimage import zoom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import (
    TINY,
    build_seeded,
    build_seeded_medim,
    in_new_process,
    network_parser,
    origin,
    print_header,
    print_row,
    size_text,
    time_and_memory,
)
from segment_anything import Sam3D
from segment_anything.predictor3D import PRECISIONS
from utils.formats.case import read_volumes
from utils.formats.prepared import map_volumes, write_prepared
from utils.formats.resample import zoom_linear, zoom_nearest, zoomed_shape
from utils.runtime.memory import keep_freed_memory
from utils.training.batch import Batch
from utils.training.clicks import Clicks
from utils.training.dataset import RoiDataset, find_cases
from utils.training.published_step import ROUNDS, PublishedStep
from utils.training.step import recompute_attention

NETWORKS = {
    "medim": "medim's network",
    "medim, kept": "medim's network, freed memory kept as train.py does",
    "full": "this one, --no-save_memory",
    "saving": "this one, --save_memory",
}
STEPS = {"cpu": [(1, "fp32")], "cuda": [(2, "bf16"), (6, "bf16")]}  # batch size, precision
WITHOUT_POINT = 4  # the round, beside the last, that has no click
SHAPE, SPACING = (240, 320, 320), (2.0, 0.8, 0.8)  # raw cases: voxels and mm in (z, y, x)
TINY_SHAPE = (54, 136, 130)  # 72 x 73 x 69 at 1.5 mm: labels need more than 1000 voxels
TARGET_SPACING = 1.5  # mm


def get_args_parser() -> argparse.ArgumentParser:
    parser = network_parser(__doc__, repeats=5)
    parser.add_argument(
        "--steps_only", action="store_true", help="leave out what runs on the CPU anyway"
    )
    return parser


def build(network: str, is_tiny: bool) -> Sam3D:
    """Both networks with the same weights; medim's has no embeddings for corners of boxes."""
    ours = build_seeded(is_tiny)
    if not network.startswith("medim"):
        return ours.train()
    theirs = build_seeded_medim(is_tiny)
    weights = ours.state_dict()
    theirs.load_state_dict({name: weights[name] for name in theirs.state_dict()})
    return Sam3D(theirs.image_encoder, theirs.prompt_encoder, theirs.mask_decoder).train()


def measure_step(
    network: str, batch: int, precision: str, device: str, repeats: int, is_tiny: bool
) -> tuple[float, float, list[float]]:
    """Seconds, GB beyond the weights, and the losses of the rounds."""
    if device == "cpu" and network != "medim":
        keep_freed_memory()  # as train.py does
    loss = DiceCELoss(sigmoid=True, squared_pred=True)
    model = build(network, is_tiny).to(device)
    recompute_attention(model, network == "saving")
    loop, side = PublishedStep(model, loss, save_memory=network == "saving"), model.img_size
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(batch, 1, side, side, side, generator=generator).to(device)
    truth = torch.zeros(image.shape, dtype=torch.bool, device=device)
    (z0, y0, x0), (z1, y1, x1) = np.array([(40, 30, 50), (90, 100, 80)]) * side // 128
    truth[..., z0:z1, y0:y1, x0:x1] = True
    draws = torch.rand(batch, ROUNDS, generator=generator).to(device)
    samples = Batch(image, truth, draws, (), {})
    is_cast = precision != "fp32"

    def step() -> None:
        loop.zero_grad()
        with torch.autocast(device, PRECISIONS[precision], enabled=is_cast):
            output = loop.play(samples, WITHOUT_POINT)
        output.loss.backward()

    seconds, memory, _ = time_and_memory(step, device, 1, repeats)
    points = torch.randint(side, (ROUNDS, batch, 1, 3), generator=generator)
    labels = torch.randint(2, (ROUNDS, batch, 1), generator=generator)
    # Those made by the loop may differ: a logit near 0 moves all ranks behind it.
    clicks = Clicks(points.to(device), labels.to(device))
    with torch.no_grad(), torch.autocast(device, PRECISIONS[precision], enabled=is_cast):
        losses = loop.play(samples, WITHOUT_POINT, clicks).round_losses.tolist()
    return seconds, memory, losses


def compare_steps(args: argparse.Namespace) -> dict[int, float]:
    """Print the table; returns this network's seconds by batch size, with --save_memory."""
    hours = "hours per 1000 samples"
    names = "seconds", hours, "faster", "memory", "share", "losses differ by"
    print_header("step", "batch", "precision", *names)
    found = {}
    for batch, precision in STEPS[args.device]:
        how = batch, precision, args.device, args.repeats, args.tiny
        rows = {network: in_new_process(measure_step, network, *how) for network in NETWORKS}
        their_seconds, their_memory, their_losses = rows["medim"]
        for network, (seconds, memory, losses) in rows.items():
            pairs = zip(losses, their_losses, strict=True)
            print_row(
                NETWORKS[network],
                batch,
                precision,
                f"{seconds:.2f}",
                f"{1000 * seconds / batch / 3600:.2f}",
                f"{their_seconds / seconds:.1f} x",
                f"+{memory:.2f} GB",
                f"{memory / their_memory:.2f}",
                f"{max(abs(a - b) / b for a, b in pairs):.0e}",
            )
        found[batch] = rows["saving"][0]
    return found


def make_volume(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A CT-like image and 12 organ-like labels."""
    rng = np.random.default_rng(seed)
    image = rng.normal(90, 10, shape).clip(0, 255).astype(np.uint8)
    gts = np.zeros(shape, np.uint8)
    for label in range(1, 13):
        start = [int(rng.uniform(0.1, 0.7) * n) for n in shape]
        region = tuple(slice(s, s + n // 6) for s, n in zip(start, shape, strict=True))
        gts[region] = label
        image[region] += np.uint8(5 * label)
    return image, gts


def per_second(work: Callable[[int], object], count: int) -> float:
    """How often `work` is done in a second, after once to warm up."""
    work(0)
    start = time.perf_counter()
    for i in range(count):
        work(i)
    return count / (time.perf_counter() - start)


def original_dataset(folder: Path, side: int) -> Callable[[int], object]:
    """What the original's dataset class does for a sample, on NIfTI files at 1.5 mm."""
    import SimpleITK as sitk  # a GPU box may do without
    import torchio as tio

    images = sorted(folder.glob("*_image.nii.gz"))
    rng = np.random.default_rng(0)
    transform = tio.Compose(
        [
            tio.ToCanonical(),
            tio.CropOrPad(mask_name="label", target_shape=(side,) * 3),
            tio.RandomFlip(axes=(0, 1, 2)),
        ]
    )
    normalise = tio.ZNormalization(masking_method=lambda x: x > 0)

    def sample(i: int) -> object:
        path = images[i % len(images)]
        image, gts = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(p)))
            for p in (path, path.with_name(path.name.replace("image", "label")))
        )
        label = rng.choice(np.unique(gts)[1:])
        subject = tio.Subject(
            image=tio.ScalarImage(tensor=torch.from_numpy(image)[None].float()),
            label=tio.LabelMap(tensor=torch.from_numpy((gts == label).astype(np.uint8))[None]),
        )
        return normalise(transform(subject))

    return sample


def compare_preprocessing(folder: Path, shape: tuple[int, int, int], repeats: int) -> None:
    target = zoomed_shape(shape, SPACING, TARGET_SPACING)
    factors = [spacing / TARGET_SPACING for spacing in SPACING]
    image, gts = make_volume(0, shape)

    def original(_: int) -> tuple[np.ndarray, np.ndarray]:
        return zoom(image, factors, order=1), zoom(gts, factors, order=0)

    def ours(_: int) -> tuple[np.ndarray, np.ndarray]:
        return zoom_linear(image, target), zoom_nearest(gts, target)

    def whole(_: int) -> None:
        image, gts, spacing = read_volumes(folder / "raw.npz")
        image, gts = zoom_linear(image, target), zoom_nearest(gts, target)
        write_prepared(folder / "prepared.npz", image, gts, spacing, b"")

    np.savez_compressed(folder / "raw.npz", imgs=image, gts=gts, spacing=np.array(SPACING[::-1]))
    grey, labels = (np.abs(a.astype(int) - b) for a, b in zip(original(0), ours(0), strict=True))
    voxels = np.prod(shape) / 1e6
    theirs, mine, all_of_it = (
        voxels * per_second(work, repeats) for work in (original, ours, whole)
    )
    title = f"preprocessing, a core, {size_text(shape)}"
    print_header(title, "Mvoxels/s", "faster", "grey levels, labels that differ")
    print_row("scipy zoom as the original calls it", f"{theirs:.1f}", "", "")
    differ = f"at most {grey.max()}, {100 * np.mean(labels > 0):.3f} %"
    print_row("this one", f"{mine:.1f}", f"{mine / theirs:.1f} x", differ)
    print_row("this one, with reading, boxes and writing", f"{all_of_it:.1f}", "", "")


def compare_samples(folder: Path, shape: tuple[int, int, int], side: int, repeats: int) -> float:
    """Print the table; returns how many samples of `side`^3 a worker of ours makes in a second.

    `shape` is that of the volumes at 1.5 mm.
    """
    import SimpleITK as sitk

    for seed in range(4):
        volumes = make_volume(seed, (max(shape),) * 3)
        image, gts = (volume[: shape[0], : shape[1], : shape[2]] for volume in volumes)
        write_prepared(folder / f"{seed}.npz", image, gts, (TARGET_SPACING,) * 3, b"")
        arrays = map_volumes(folder / f"{seed}.npz")
        for name, array in zip(("image", "label"), arrays, strict=True):
            path = folder / f"{seed}_{name}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(np.array(array)), str(path))
    cases, _ = find_cases([folder])
    dataset = RoiDataset(cases, side)
    theirs = per_second(original_dataset(folder, side), 2 * repeats)
    mine = per_second(lambda i: dataset[(i, i % len(cases))], 20 * repeats)
    print_header(f"samples, a worker, {size_text(shape)} at 1.5 mm", "per second", "faster")
    print_row("as the original's dataset class makes them", f"{theirs:.2f}", "")
    print_row("this one", f"{mine:.1f}", f"{mine / theirs:.1f} x")
    return mine


def main(args: argparse.Namespace) -> None:
    print(f"{origin(args.device)}\n")
    steps = compare_steps(args)
    if args.steps_only:
        return
    torch.set_num_threads(1)
    shape, side = (TINY_SHAPE, TINY["img_size"]) if args.tiny else (SHAPE, 128)
    with tempfile.TemporaryDirectory() as raw, tempfile.TemporaryDirectory() as prepared:
        print()
        compare_preprocessing(Path(raw), shape, args.repeats)
        print()
        target = zoomed_shape(shape, SPACING, TARGET_SPACING)
        samples = compare_samples(Path(prepared), target, side, args.repeats)
    print()
    for batch, seconds in steps.items():
        rate = batch / seconds
        print(
            f"A step of batch {batch} in {seconds:.2f} s on this {args.device} takes {rate:.1f} "
            f"samples per second: {max(1, int(np.ceil(rate / samples)))} worker(s)."
        )


if __name__ == "__main__":
    main(get_args_parser().parse_args())
