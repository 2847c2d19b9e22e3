"""What training costs: the step, the samples, the preprocessing, each beside what it replaces.

    python bench/bench_train.py --device cpu
    python bench/bench_train.py --device cuda

Step: forward and backward of all rounds of the published loop, the same on medim's network and on
this one, with the same seeded weights, ROIs and clicks; each row is a process of its own.
On a CPU train.py lets freed memory be kept. Samples: of the published recipe, from the same volumes
at 1.5 mm, the other way being what the original's dataset class does: NIfTI files through SimpleITK
and TorchIO. Preprocessing: beside
scipy.ndimage.zoom as the original calls it. Both on one core. Volumes are synthetic.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "bench"))

from bench_encoder import (  # noqa: E402
    build_seeded,
    device_name,
    get_args_parser,
    run_row,
    time_and_memory,
)

NETWORKS = {
    "medim": "medim's network",
    "medim, kept": "medim's network, freed memory kept as train.py does",
    "full": "this one, --no-save_memory",
    "saving": "this one, --save_memory",
}
STEPS = {"cpu": [(1, "fp32")], "cuda": [(2, "bf16"), (6, "bf16")]}  # batch size, precision
SHAPE, SPACING = (240, 320, 320), (2.0, 0.8, 0.8)  # raw cases: voxels and mm in (z, y, x)
SIZE = 128


def build(network: str):
    """Both networks with the same weights; medim's has no embeddings for corners of boxes."""
    import torch

    from segment_anything import Sam3D

    torch.manual_seed(0)  # of the positional encoding, a buffer
    ours = build_seeded()
    if not network.startswith("medim"):
        return ours.train()
    from medim.models.sam_med3d import build_sam3D_vit_b_ori

    theirs = build_sam3D_vit_b_ori()
    weights = ours.state_dict()
    theirs.load_state_dict({name: weights[name] for name in theirs.state_dict()})
    return Sam3D(theirs.image_encoder, theirs.prompt_encoder, theirs.mask_decoder).train()


def measure_step(network: str, device: str, batch: int, precision: str, repeats: int) -> dict:
    """Seconds, GB beyond the weights, and the losses of the rounds."""
    import torch
    from monai.losses import DiceCELoss

    from segment_anything.predictor3D import PRECISIONS
    from utils.runtime.memory import keep_freed_memory
    from utils.training.batch import Batch
    from utils.training.published_step import ROUNDS, PublishedStep
    from utils.training.step import Clicks, recompute_attention

    if device == "cpu" and network != "medim":
        keep_freed_memory()  # as train.py does
    loss = DiceCELoss(sigmoid=True, squared_pred=True)
    model = build(network).to(device)
    recompute_attention(model, network == "saving")
    loop = PublishedStep(model, loss, save_memory=network == "saving")
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(batch, 1, SIZE, SIZE, SIZE, generator=generator).to(device)
    truth = torch.zeros(image.shape, dtype=torch.bool, device=device)
    truth[..., 40:90, 30:100, 50:80] = True
    draws = torch.rand(batch, ROUNDS, generator=generator).to(device)
    samples = Batch(image, truth, draws, (), {})
    is_cast = precision != "fp32"

    def step() -> None:
        loop.zero_grad()
        with torch.autocast(device, PRECISIONS[precision], enabled=is_cast):
            output = loop.play(samples, without_point=4)
        output.loss.backward()

    seconds, memory, _ = time_and_memory(step, device, 1, repeats)
    points = torch.randint(SIZE, (ROUNDS, batch, 1, 3), generator=generator)
    labels = torch.randint(2, (ROUNDS, batch, 1), generator=generator)
    # Those made by the loop may differ: a logit near 0 moves all ranks behind it.
    clicks = Clicks(points.to(device), labels.to(device))
    with torch.no_grad(), torch.autocast(device, PRECISIONS[precision], enabled=is_cast):
        losses = loop.play(samples, 4, clicks).round_losses.tolist()
    return {"seconds": seconds, "memory": memory, "losses": losses}


def compare_steps(args: argparse.Namespace) -> dict[int, float]:
    """Prints the table; returns this network's seconds by batch size, with --save_memory."""
    print("| step | batch | precision | seconds | faster | memory | share | losses differ by |")
    print("|---|---|---|---|---|---|---|---|")
    found = {}
    for batch, precision in STEPS[args.device]:
        row = dict(device=args.device, batch=batch, precision=precision, repeats=args.repeats)
        rows = {network: run_row(__file__, network=network, **row) for network in NETWORKS}
        reference = rows["medim"]
        for network, row in rows.items():
            pairs = zip(row["losses"], reference["losses"], strict=True)
            difference = max(abs(a - b) / b for a, b in pairs)
            print(
                f"| {NETWORKS[network]} | {batch} | {precision} | {row['seconds']:.2f} "
                f"| {reference['seconds'] / row['seconds']:.1f} x | +{row['memory']:.2f} GB "
                f"| {row['memory'] / reference['memory']:.2f} | {difference:.0e} |",
                flush=True,
            )
        found[batch] = rows["saving"]["seconds"]
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
    """How often `work` is done, after once to warm up."""
    work(0)
    start = time.perf_counter()
    for i in range(count):
        work(i)
    return count / (time.perf_counter() - start)


def original_dataset(folder: Path) -> Callable[[int], object]:
    """What the original's dataset class does for a sample, on NIfTI files at 1.5 mm."""
    import SimpleITK as sitk
    import torch
    import torchio as tio

    images = sorted(folder.glob("*_image.nii.gz"))
    rng = np.random.default_rng(0)
    transform = tio.Compose(
        [
            tio.ToCanonical(),
            tio.CropOrPad(mask_name="label", target_shape=(SIZE,) * 3),
            tio.RandomFlip(axes=(0, 1, 2)),
        ]
    )
    normalise = tio.ZNormalization(masking_method=lambda x: x > 0)

    def sample(i: int):
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


def compare_data(folder: Path, args: argparse.Namespace, steps: dict[int, float]) -> None:
    import SimpleITK as sitk
    import torch
    from scipy.ndimage import zoom

    from utils.formats.case import read_volumes
    from utils.formats.prepared import map_volumes, write_prepared
    from utils.formats.resample import zoom_linear, zoom_nearest, zoomed_shape
    from utils.training.dataset import RoiDataset, find_cases

    torch.set_num_threads(1)
    shape = zoomed_shape(SHAPE, SPACING, 1.5)
    factors = [s / 1.5 for s in SPACING]
    image, gts = make_volume(0, SHAPE)

    def original(_: int):
        return zoom(image, factors, order=1), zoom(gts, factors, order=0)

    def ours(_: int):
        return zoom_linear(image, shape), zoom_nearest(gts, shape)

    same = [np.abs(a.astype(int) - b) for a, b in zip(original(0), ours(0), strict=True)]
    voxels = np.prod(SHAPE) / 1e6
    rates = [voxels * per_second(work, args.repeats) for work in (original, ours)]
    raw = folder / "raw.npz"
    np.savez_compressed(raw, imgs=image, gts=gts, spacing=np.array(SPACING[::-1]))

    def whole(_: int):
        image, gts, spacing = read_volumes(raw)
        image, gts = zoom_linear(image, shape), zoom_nearest(gts, shape)
        write_prepared(folder / "prepared.npz", image, gts, spacing, b"")

    rates.append(voxels * per_second(whole, args.repeats))
    print(
        f"\n| preprocessing, a core, {' x '.join(map(str, SHAPE))} | Mvoxels/s | faster | "
        f"grey levels, labels that differ |\n|---|---|---|---|\n"
        f"| scipy zoom as the original calls it | {rates[0]:.1f} | | |\n"
        f"| this one | {rates[1]:.1f} | {rates[1] / rates[0]:.1f} x | at most {same[0].max()}, "
        f"{100 * np.mean(same[1] > 0):.3f} % |\n"
        f"| this one, with reading, boxes and writing | {rates[2]:.1f} | | |\n"
    )

    (folder / "raw.npz").unlink()
    (folder / "prepared.npz").unlink()
    for seed in range(4):
        image, gts = (v[: shape[0], : shape[1], : shape[2]] for v in make_volume(seed, (320,) * 3))
        write_prepared(folder / f"{seed}.npz", image, gts, (1.5,) * 3, b"")
        for name, array in zip(
            ("image", "label"), map_volumes(folder / f"{seed}.npz"), strict=True
        ):
            sitk.WriteImage(
                sitk.GetImageFromArray(np.array(array)), str(folder / f"{seed}_{name}.nii.gz")
            )
    cases, _ = find_cases([folder])
    dataset = RoiDataset(cases, SIZE)
    theirs = per_second(original_dataset(folder), 2 * args.repeats)
    mine = per_second(lambda i: dataset[(i, i % len(cases))], 20 * args.repeats)
    print(
        f"| samples, a worker, {' x '.join(map(str, cases[0].shape))} at 1.5 mm | per second "
        f"| faster |\n|---|---|---|\n"
        f"| as the original's dataset class makes them | {theirs:.2f} | |\n"
        f"| this one | {mine:.1f} | {mine / theirs:.1f} x |\n"
    )
    for batch, seconds in steps.items():
        rate = batch / seconds
        print(
            f"A step of batch {batch} in {seconds:.2f} s on this {args.device} takes {rate:.1f} "
            f"samples per second: {max(1, int(np.ceil(rate / mine)))} worker(s)."
        )


def main(args: argparse.Namespace) -> None:
    import torch

    print(f"{device_name(args.device)}; torch {torch.__version__}\n")
    steps = compare_steps(args)
    with tempfile.TemporaryDirectory() as folder:
        compare_data(Path(folder), args, steps)


if __name__ == "__main__":
    args = get_args_parser(__doc__).parse_args()
    if args.one:
        print(json.dumps(measure_step(**json.loads(args.one))))
    else:
        main(args)
