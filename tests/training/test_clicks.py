"""The clicks of training steps: random errors, and the evaluator's as operations on tensors."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage

from utils.evaluation.simulated_prompts import largest_error_click
from utils.training import clicks
from utils.training.clicks import centre_clicks, error_clicks, random_error_click, squared_depth


def test_a_click_is_an_error_with_the_label_of_the_truth():
    truth = torch.zeros(2, 1, 6, 6, 6, dtype=torch.bool)
    pred = truth.clone()
    truth[0, 0, 1, 2, 3] = pred[1, 0, 5, 4, 0] = True
    points, labels = random_error_click(pred, truth, torch.tensor([0.99, 0.0]))
    assert points.tolist() == [[[1, 2, 3]], [[5, 4, 0]]] and labels.tolist() == [[1], [0]]


def test_clicks_are_uniform_over_the_errors():
    truth = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    truth[..., 0, 0:3] = True
    pred = torch.zeros_like(truth)
    found = Counter(
        tuple(random_error_click(pred, truth, torch.tensor([draw]))[0].flatten().tolist())
        for draw in (np.arange(48) + 0.5) / 48
    )
    assert found == {tuple(map(float, index)): 4 for index in truth[0, 0].nonzero().tolist()}


def test_without_errors_any_voxel_is_clicked_as_what_it_is():
    truth = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
    truth[..., 1] = True
    for i in range(8):
        points, labels = random_error_click(truth, truth, torch.tensor([i / 8]))
        assert labels.item() == points[0, 0, 2].item()


def masks_of_kinds(count: int, size: int, seed: int) -> np.ndarray:
    """(count, size, size, size) bool: noise of all densities, blobs, blocks with many ties."""
    rng = np.random.default_rng(seed)
    masks = []
    for i in range(count):
        noise = rng.random([size] * 3)
        if i % 3 == 1:
            noise = ndimage.gaussian_filter(noise, rng.uniform(0.5, 3))
        elif i % 3 == 2:
            noise = np.kron(rng.random([-(-size // 4)] * 3), np.ones([4] * 3))[:size, :size, :size]
        masks.append(noise < np.quantile(noise, rng.uniform(0.002, 0.998)))
    return np.stack(masks)


def check_against_the_evaluator(truth: np.ndarray, pred: np.ndarray) -> None:
    """(B, S, S, S) bool."""
    points, labels = centre_clicks(*(torch.from_numpy(m[:, None].copy()) for m in (pred, truth)))
    assert points.shape == (len(truth), 1, 3) and labels.shape == (len(truth), 1)
    for i in range(len(truth)):
        click = largest_error_click(truth[i], pred[i])
        if click is None:
            assert labels[i].item() == -1
        else:
            assert tuple(points[i, 0].int().tolist()) == click.point
            assert labels[i].item() == int(click.is_foreground)


@pytest.mark.parametrize("size", [7, 16])
def test_the_centre_click_is_the_evaluators(size):
    truth, pred = (masks_of_kinds(90, size, seed) for seed in (0, 1))
    pred[::10] = False  # one object, as in the first round
    pred[5] = truth[5]
    check_against_the_evaluator(truth, pred)


@pytest.mark.slow
def test_the_centre_click_is_the_evaluators_on_thousands_of_masks():
    for seed in range(40):
        truth, pred = (masks_of_kinds(100, 12 + seed % 9, seed + s) for s in (100, 200))
        check_against_the_evaluator(truth, pred)


def test_the_centre_click_at_the_size_of_a_roi():
    truth, pred = (masks_of_kinds(6, 64, seed) for seed in (3, 4))
    check_against_the_evaluator(truth, pred)


def maze(size: int, seed: int) -> np.ndarray:
    """(size, size, size) bool: a long winding corridor through all of it, a voxel wide."""
    rng = np.random.default_rng(seed)
    cells = size // 2
    mask = np.zeros([size] * 3, bool)
    stack, seen = [(0, 0, 0)], {(0, 0, 0)}
    mask[0, 0, 0] = True
    while stack:
        at = stack[-1]
        for axis, side in rng.permutation([(a, s) for a in range(3) for s in (-1, 1)]):
            to = tuple(c + side * (i == axis) for i, c in enumerate(at))
            if to not in seen and all(0 <= c < cells for c in to):
                mask[tuple(a + b for a, b in zip(at, to, strict=True))] = True
                mask[tuple(2 * c for c in to)] = True
                seen.add(to)
                stack.append(to)
                break
        else:
            stack.pop()
    return mask


def serpentine(size: int) -> np.ndarray:
    """(size, size, size) bool: one corridor to and fro, as long as a corridor can be."""
    mask = np.zeros([size] * 3, bool)
    mask[::2, ::2] = True
    for z in range(0, size, 2):
        rows = range(1, size - 1, 2)
        for k, y in enumerate(rows):
            mask[z, y, -1 if k % 2 == 0 else 0] = True
        if z + 2 < size:
            mask[z + 1, size - 2 if z % 4 == 0 else 0, 0] = True
    return mask


@pytest.mark.parametrize("name", ["maze", "serpentine"])
def test_components_join_however_they_wind(name):
    """The number of rounds is fixed, and enough for the longest ways, with rounds to spare."""
    size = 64
    mask = maze(size, 0) if name == "maze" else serpentine(size)
    turned = [mask, mask[::-1, ::-1, ::-1].copy(), mask.transpose(2, 0, 1).copy()]
    masks = torch.from_numpy(np.stack(turned))
    assert all(ndimage.label(m, np.ones((3, 3, 3)))[1] == 1 for m in turned)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clicks, "HOOKS", clicks.HOOKS - 3)
        assert torch.equal(clicks.largest_components(masks), masks)


def test_the_depth_is_the_exact_distance_to_what_is_outside():
    masks = masks_of_kinds(30, 15, 7)
    masks[0] = True
    depths = squared_depth(torch.from_numpy(masks)).numpy()
    for mask, depth in zip(masks, depths, strict=True):
        exact = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
        np.testing.assert_array_equal(depth, np.round(exact**2))


def test_ties_are_broken_as_numpy_draws():
    counts = torch.tensor([*range(1, 3000), 2**15, 2**15 + 1, 64**3 - 1, 64**3])
    expected = [np.random.RandomState(42).choice(n) for n in counts.tolist()]
    assert clicks._choice(counts).tolist() == expected


def errors(seed=0):
    """Prediction and truth of four samples, the last of which is right."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(4, 1, 12, 12, 12, generator=generator) > 0.3
    pred = torch.rand(4, 1, 12, 12, 12, generator=generator) > 0.7
    pred[3] = truth[3]
    return pred, truth


@pytest.mark.parametrize("way", ["scipy", "tensors"])
def test_clicks_are_the_evaluators_or_random_errors(way, monkeypatch):
    pred, truth = errors()
    draws = torch.tensor([0.5, 0.2, 0.9, 0.1])
    random_points, random_labels = random_error_click(pred, truth, draws)
    if way == "tensors":
        monkeypatch.setattr(clicks, "ON_HOST", ())
    points, labels = error_clicks(pred, truth, draws, torch.tensor([True, False, True, True]))
    for i in (0, 2):
        click = largest_error_click(truth[i, 0].numpy(), pred[i, 0].numpy())
        assert tuple(points[i, 0].long().tolist()) == click.point
        assert labels[i].item() == click.is_foreground
        assert not torch.equal(points[i], random_points[i])
    for i in (1, 3):  # a random error, and any voxel where nothing is wrong
        assert torch.equal(points[i], random_points[i]) and labels[i] == random_labels[i]
    z, y, x = points[1, 0].long().tolist()
    assert pred[1, 0, z, y, x] != truth[1, 0, z, y, x] == labels[1, 0]


@pytest.mark.gpu
def test_a_gpu_clicks_where_a_cpu_does():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    pred, truth = (torch.from_numpy(masks_of_kinds(48, 64, seed))[:, None] for seed in (5, 6))
    expected = error_clicks(pred, truth, torch.rand(48), torch.ones(48, dtype=torch.bool))
    ours = error_clicks(
        pred.cuda(), truth.cuda(), torch.rand(48).cuda(), torch.ones(48, dtype=torch.bool).cuda()
    )
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a.cpu(), b)
