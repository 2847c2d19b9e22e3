"""What the adaptive policy is for, on a small network that is trained here."""

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss

from segment_anything import sam_model_registry3D
from segment_anything.bounds import AdaptiveSettings
from segment_anything.prompts import Prompts
from utils.evaluation.protocol import play, timed_predictor
from utils.evaluation.simulated_prompts import challenge_box
from utils.formats.case import Case, LabelledCase
from utils.formats.prepared import write_prepared
from utils.inference.method import make_segmenter
from utils.training.adaptive_dataset import AdaptiveDataset
from utils.training.adaptive_step import AdaptiveStep
from utils.training.batch import collate
from utils.training.dataset import find_cases
from utils.training.streams import Stream, stream

SHAPE, SPACING = (24, 50, 70), (3.0, 1.0, 0.7)
STEPS = 250


def volumes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An object of two touching ellipsoids in noise, and others of the same brightness."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]

    def ellipsoid(centre: np.ndarray) -> np.ndarray:
        (cz, cy, cx), (rz, ry, rx) = centre, rng.uniform((3, 6, 8), (6, 10, 14))
        return ((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1

    centre = rng.uniform((8, 18, 25), (16, 32, 45))
    truth = ellipsoid(centre) | ellipsoid(centre + rng.uniform((-3, -6, -8), (3, 6, 8)))
    others = ellipsoid(rng.uniform((0, 0, 0), SHAPE)) | ellipsoid(rng.uniform((0, 0, 0), SHAPE))
    image = rng.normal(80, 15, SHAPE) + 60 * (truth | others)
    return image.clip(1, 255).astype(np.uint8), truth.astype(np.uint8)


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> tuple[np.ndarray, list[tuple[bool, bool]]]:
    """DSC (cases, rounds) on unseen cases, and of each click its kind and whether it was obeyed."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(24):
        write_prepared(folder / f"{i}.npz", *volumes(i), SPACING, b"", is_native=True)
    cases, _ = find_cases([folder], 100, is_native=True)
    torch.manual_seed(0)
    sizes = dict(img_size=32, dims=(16, 32, 48), encoder_depth=1, decoder_depth=1, num_heads=4)
    model = sam_model_registry3D["hybrid_s"](**sizes).train()
    settings = AdaptiveSettings()
    dataset = AdaptiveDataset(cases, model.img_size, model.mask_size, settings, min_voxels=100)
    train_step = AdaptiveStep(model, DiceCELoss(sigmoid=True, squared_pred=True), save_memory=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        samples = [dataset[(step, (4 * step + i) % len(dataset))] for i in range(4)]
        batch = collate(samples)
        optimizer.zero_grad()
        train_step(batch, stream(Stream.ROUNDS, 0, 0, step)).loss.backward()
        optimizer.step()
        schedule.step()

    segment = make_segmenter(model.eval(), "adaptive")
    curves, clicks = [], []
    for seed in range(100, 120):
        image, truth = volumes(seed)
        box, _ = challenge_box(truth == 1, np.random.default_rng(seed))
        case = Case(f"{seed}.npz", image, SPACING, (Prompts(box),), 1)
        labelled = LabelledCase(case, truth, (1,))
        curve = []
        for played, seg in play(labelled, timed_predictor(segment)):
            curve.append(played.scores[0, 0])
            clicks += [
                (click.is_foreground, bool(seg[click.point]) == click.is_foreground)
                for click in played.clicks
                if click is not None
            ]
        curves.append(curve)
    return np.array(curves), clicks


@pytest.mark.slow
def test_clicks_add_up(played):
    """The box says most of these objects: the curve is all but flat."""
    curves, _ = played
    means = curves.mean(axis=0)
    assert means[0] > 0.85 and (np.diff(means) >= -0.01).all(), means
    assert means[-1] > means[0], means


@pytest.mark.slow
@pytest.mark.parametrize("is_foreground", [True, False])
def test_a_click_adds_or_removes_what_is_clicked(played, is_foreground):
    _, clicks = played
    obeyed = [was_obeyed for kind, was_obeyed in clicks if kind == is_foreground]
    assert len(obeyed) > 20 and np.mean(obeyed) >= 0.9, f"{np.mean(obeyed)} of {len(obeyed)}"
