"""The parts that a GPU changes, each beside the same on a CPU."""

import copy

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from runs import NATIVE_SHAPE, NATIVE_SPACING, native_volumes, write_native_cases
from seeded import randomise, seeded_roi
from segment_anything import SamPredictor3D, sam_model_registry3D
from segment_anything.bounds import AdaptiveSettings
from segment_anything.modeling.sam3D import Sam3D
from segment_anything.prompts import Box, Prompts
from utils.formats.case import Case
from utils.inference.method import make_segmenter
from utils.runtime.device import choose_device
from utils.training import adaptive_dataset
from utils.training.adaptive_dataset import AdaptiveDataset
from utils.training.adaptive_step import ADAPTIVE_ROUNDS, AdaptiveStep
from utils.training.batch import Batch, collate
from utils.training.clicks import Clicks
from utils.training.dataset import find_cases
from utils.training.published_step import ROUNDS, PublishedStep
from utils.training.synthetic import make_case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
NAMES = ("cpu", "cuda")  # the second beside the first
FULL_SIZE = ("vit_s_ori", "hybrid_s")  # their heads are as large as those of all


def network(name: str, device: str) -> Sam3D:
    return randomise(sam_model_registry3D[name]()).to(choose_device(device))


def gradients(step: torch.nn.Module) -> Tensor:
    found = [p.grad for p in step.parameters() if p.grad is not None]
    return torch.cat([gradient.flatten().double().cpu() for gradient in found])


def assert_near(actual: Tensor, expected: Tensor, share: float) -> None:
    assert (actual - expected).norm() <= share * expected.norm()


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> Batch:
    """Two samples of the adaptive recipe, with all kinds of prompts."""
    folder = write_native_cases(tmp_path_factory.mktemp("cases"), 2)
    cases, _ = find_cases([folder], 20, is_native=True)
    settings = AdaptiveSettings(drawings=True)
    dataset = AdaptiveDataset(cases, 64, 64, settings, min_voxels=20, artefacts=0.0)
    return collate([dataset[(0, i)] for i in range(2)])


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_predictor_answers_alike(name):
    image, gts = native_volumes()
    sketch = np.zeros(NATIVE_SHAPE, np.int8)
    sketch[11, 18:22, 20:30] = 1
    segs, known = [], []
    for device in NAMES:
        settings = AdaptiveSettings(drawings=name == "hybrid_s")
        predictor = SamPredictor3D(network(name, device), settings)
        predictor.set_image(image, NATIVE_SPACING)
        predictor.predict(box=(4, 8, 10, 19, 33, 41))
        predictor.predict(points=[(11, 20, 25), (2, 45, 60)], labels=[1, 0])
        predictor.predict(points=[(11, 38, 55)], labels=[1], obj=2)
        if settings.drawings:
            predictor.predict(scribble=sketch, obj=3)
            predictor.predict(lasso=-sketch, obj=2)
        predictor.predict(mask=gts == 9, points=[(11, 40, 52)], labels=[0], obj=2)
        predictor.undo(obj=2)
        segs.append(predictor.segmentation())
        known.append(predictor.objects)
    assert known[0] == known[1] and segs[0].any()
    assert np.mean(segs[0] != segs[1]) <= 1e-3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_predictor_of_low_precision_answers_about_alike(precision):
    """Of a network with random weights, whose logits are mostly near 0."""
    image, _ = native_volumes()
    masks = []
    for device, how in zip(NAMES, ("fp32", precision), strict=True):
        predictor = SamPredictor3D(network("hybrid_s", device), precision=how)
        predictor.set_image(image, NATIVE_SPACING)
        masks.append(predictor.predict(box=(4, 8, 10, 19, 33, 41)).mask)
    assert masks[0].any() and np.mean(masks[0] != masks[1]) <= 0.05


def test_memory_that_does_not_hold_a_batch_holds_its_half():
    image, _ = native_volumes()
    boxes = [Box((4, 8, 10 + i), (19, 33, 41 + i)) for i in range(16)]
    case = Case("case.npz", image, NATIVE_SPACING, tuple(map(Prompts, boxes)), 1)
    model = network("hybrid_s", NAMES[1])
    whole = torch.cuda.get_device_properties(0).total_memory
    peaks, expected = [], None
    for size in (1, 16):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        expected = make_segmenter(model, "adaptive", batch_size=size)(case)
        peaks.append(torch.cuda.max_memory_reserved())
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(sum(peaks) / 2 / whole)
    try:
        with pytest.warns(UserWarning, match="out of GPU memory"):
            seg = make_segmenter(model, "adaptive", batch_size=16)(case)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.mean(seg != expected) <= 1e-3


def test_an_adaptive_step_has_the_same_losses_and_gradients(batch):
    """Of the first round: a logit near 0 may move the clicks of those that follow."""
    losses, slopes = [], []
    for device in NAMES:
        step = AdaptiveStep(
            network("hybrid_s", device).train(), DiceCELoss(sigmoid=True, squared_pred=True), False
        )
        output = step.play(batch.to(step.model.device), {0})
        output.loss.backward()
        losses.append(output.round_losses.cpu())
        slopes.append(gradients(step))
    assert len(losses[0]) == ADAPTIVE_ROUNDS
    torch.testing.assert_close(losses[1][0], losses[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
    assert_near(slopes[1], slopes[0], 1e-3)


def test_a_published_step_has_the_same_losses_and_gradients(tiny_model):
    size = tiny_model.img_size
    truth = torch.zeros(2, 1, size, size, size, dtype=torch.bool)
    truth[..., 8:20, 5:25, 9:18] = True
    image = torch.cat([seeded_roi(seed, size) for seed in range(2)])
    draws = torch.rand(2, ROUNDS, generator=torch.Generator().manual_seed(0))
    samples = Batch(image, truth, draws, ("a", "b"), {})
    points = torch.randint(size, (ROUNDS, 2, 1, 3), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(ROUNDS * 2).view(ROUNDS, 2, 1) % 2
    losses, slopes = [], []
    for device in NAMES:
        model = copy.deepcopy(tiny_model).to(choose_device(device)).train()
        step = PublishedStep(model, DiceCELoss(sigmoid=True, squared_pred=True))
        clicks = Clicks(points.to(model.device), labels.to(model.device))
        output = step.play(samples.to(model.device), 4, clicks)
        output.loss.backward()
        losses.append(output.round_losses.cpu())
        slopes.append(gradients(step))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-5)
    assert_near(slopes[1], slopes[0], 1e-2)


def test_samples_made_there_are_those_made_here(tmp_path, monkeypatch):
    """But for what is drawn there: deformations, intensities and perturbed masks."""
    for name in ("DEFORMED", "BEGUN", "REFINED", "WITHOUT_BOX"):
        monkeypatch.setattr(adaptive_dataset, name, 0.0)
    monkeypatch.setattr(adaptive_dataset, "change_intensities", lambda image, rng: image)
    cases, _ = find_cases([write_native_cases(tmp_path, 2)], 20, is_native=True)
    settings = AdaptiveSettings(drawings=True)
    here, there = (
        AdaptiveDataset(cases, 64, 64, settings, min_voxels=20, device=device, artefacts=0.0)
        for device in NAMES
    )
    for epoch in range(12):
        expected, actual = here[(epoch, epoch % 2)], there[(epoch, epoch % 2)].to("cpu")
        torch.testing.assert_close(actual.image, expected.image, rtol=1e-3, atol=1e-3)
        assert torch.equal(actual.truth, expected.truth)
        for name in ("points", "labels", "mask", "drawings"):
            assert torch.equal(getattr(actual.start, name), getattr(expected.start, name)), name


def test_samples_made_there_follow_from_the_seed(tmp_path):
    cases, _ = find_cases([write_native_cases(tmp_path, 1)], 20, is_native=True)
    settings = AdaptiveSettings(drawings=True)
    options = dict(min_voxels=20, synthetic=4, device=NAMES[1], artefacts=0.0)
    twice = [AdaptiveDataset(cases, 64, 64, settings, **options) for _ in range(2)]
    assert len(twice[0]) > 4
    for index in range(len(twice[0])):
        first, second = (dataset[(0, index)] for dataset in twice)
        assert first.image.device.type == NAMES[1] and first.image.isfinite().all()
        assert first.truth.any()
        for name in ("image", "truth", "draws"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_a_synthetic_case_made_there_is_one():
    made = [make_case(3, device=NAMES[1]) for _ in range(2)]
    assert made[0].gts.any() and made[0].image.max() > 200
    np.testing.assert_array_equal(made[0].gts, made[1].gts)
    assert abs(made[0].image.astype(int) - made[1].image).max() <= 1
