"""The adaptive recipe: samples as inference meets them, and its rounds."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from edt import sdf
from monai.losses import DiceCELoss
from scipy import ndimage

from conftest import TINY_HYBRID
from runs import NATIVE_SHAPE, NATIVE_SPACING, native_volumes, write_native_cases
from segment_anything import sam_model_registry3D
from segment_anything.adaptive import points_in
from segment_anything.bounds import AdaptiveSettings, choose_bounds, roi_of
from segment_anything.prompts import Box, Prompts
from segment_anything.roi import crop_roi_averaged, crop_roi_nearest, normalise
from utils.evaluation.simulated_prompts import middle_extent
from utils.formats.prepared import write_prepared
from utils.training import adaptive_dataset, adaptive_step, augmentation, drawings, object_shape
from utils.training.adaptive_dataset import (
    AdaptiveDataset,
    box_points,
    perturbed_mask,
    signed_distance,
    source_of,
)
from utils.training.adaptive_step import (
    ADAPTIVE_ROUNDS,
    GRADED_ROUNDS,
    LOOKS,
    AdaptiveStep,
    graded_rounds,
    iou_of,
)
from utils.training.batch import collate
from utils.training.clicks import error_clicks
from utils.training.dataset import EpochSampler, find_cases, make_loader
from utils.training.object_shape import ObjectShape, moved_box
from utils.training.streams import Stream, stream

SIZE, MASK_SIZE = 32, 16


def dataset_of(folder, **options):
    cases, failures = find_cases([folder], 20, is_native=True)
    assert not failures
    options = {"mask_size": MASK_SIZE, "settings": AdaptiveSettings(), "min_voxels": 20} | options
    options = {"artefacts": 0.0} | options
    return AdaptiveDataset(cases, SIZE, **options)


@pytest.fixture
def plain(monkeypatch):
    """Samples with boxes, without jitter, start masks, crops, other axes, shapes or intensities."""
    shares = "WITHOUT_BOX BEGUN REFINED DEFORMED ROI_SCALE ROI_SHIFT PERMUTED".split()
    for name in shares:
        monkeypatch.setattr(adaptive_dataset, name, 0.0)
    monkeypatch.setattr(adaptive_dataset, "change_intensities", lambda image, rng: image)


def test_a_sample_is_what_inference_makes_of_the_same_prompts(tmp_path, plain):
    """ROI, resampling, normalisation and prompts, up to flips."""
    dataset = dataset_of(write_native_cases(tmp_path))
    image, gts = native_volumes()
    seen = set()
    for epoch in range(60):
        rng = stream(Stream.SAMPLE, 0, epoch, 0)
        sample = dataset[(epoch, 0)]
        points, labels, mask, _ = sample.start
        i = rng.permutation(np.array([1, 2]))[0]  # as the dataset draws them
        label, whole = [2, 4, 9][i], dataset.cases[0].label_boxes[i].T.astype(float)
        rng.random()
        box = moved_box(ObjectShape(gts, label, whole, MASK_SIZE).extent, NATIVE_SHAPE, rng)
        bounds = choose_bounds(
            Prompts(box), None, SIZE, NATIVE_SHAPE, NATIVE_SPACING, AdaptiveSettings()
        )
        roi = roi_of(bounds, SIZE, 2, NATIVE_SHAPE)
        expected = normalise(crop_roi_averaged(image, roi))
        truth = torch.from_numpy(crop_roi_nearest(gts, roi) == label)
        if torch.equal(sample.truth[0, 0], truth):  # not flipped
            torch.testing.assert_close(sample.image[0, 0], expected)
            corners, kinds = points_in(Prompts(box), roi)
            np.testing.assert_allclose(points[0], corners, atol=1e-5)
            np.testing.assert_array_equal(labels[0], kinds)
            assert not mask.any()
            seen.add(label)
    assert seen == {4, 9}


@pytest.mark.parametrize("deformed", [0.0, 1.0])
def test_prompts_follow_the_flips_and_turns(deformed, tmp_path, monkeypatch):
    """The truth fills its box along z before turning; clicks lie in it."""
    monkeypatch.setattr(adaptive_dataset, "DEFORMED", deformed)
    dataset = dataset_of(write_native_cases(tmp_path))
    kinds = Counter()
    for epoch in range(80):
        sample = dataset[(epoch, 0)]
        points, labels, mask = (t[0].numpy() for t in sample.start[:3])
        truth = sample.truth[0, 0].numpy()
        kinds["begun"] += bool(mask.any())
        if 2 not in labels:
            (point,) = np.round(points[labels == 1]).astype(int)
            kinds["click"] += 1
            around = tuple(slice(max(p - 2, 0), p + 3) for p in point)
            assert truth[around].any()
            continue
        low, high = (np.clip(np.round(points[labels == k][0]), 0, SIZE - 1) for k in (2, 3))
        assert (low <= high).all()
        z, y, x = (slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
        share = truth[z, y, x].sum() / truth.sum()
        kinds["box"] += 1
        assert share > 0.75  # the ellipsoid is widest, and the tube the same, in its middle slice
    assert kinds["box"] > 50 and kinds["click"] > 3 and 15 < kinds["begun"] < 60


def test_a_sample_follows_from_seed_epoch_and_case(tmp_path, monkeypatch):
    monkeypatch.setattr(adaptive_dataset, "DEFORMED", 1.0)
    write_native_cases(tmp_path, 2)
    first, same, other = (dataset_of(tmp_path, seed=seed)[(4, 1)] for seed in (0, 0, 1))
    assert torch.equal(first.image, same.image) and torch.equal(first.draws, same.draws)
    assert all(torch.equal(a, b) for a, b in zip(first.start[:3], same.start[:3], strict=True))
    assert not torch.equal(first.draws, other.draws)


def test_a_box_of_a_deformed_object_is_made_of_it_in_its_roi(tmp_path, plain, monkeypatch):
    """By the challenge's rule, exact along z; which is the sample's only axis of that kind."""
    monkeypatch.setattr(adaptive_dataset, "DEFORMED", 1.0)
    dataset = dataset_of(write_native_cases(tmp_path))
    for epoch in range(12):
        sample = dataset[(epoch, 0)]
        truth = sample.truth[0, 0].numpy()
        z = np.flatnonzero(truth.any(axis=(1, 2)))
        low, high = sample.start.points[0].numpy()
        assert (low[0], high[0]) == (z[0], z[-1]) and sample.start.labels.tolist() == [[2, 3]]
        middles = truth[z[len(z) // 2]], truth[z[(len(z) - 1) // 2]]  # or flipped
        sides = [np.argwhere(middle) for middle in middles]
        assert any((low[1:] <= at.min(axis=0)).all() for at in sides)
        assert any((high[1:] >= at.max(axis=0)).all() for at in sides)


def test_a_field_that_moves_nothing_gives_the_view_of_inference(tmp_path, plain, monkeypatch):
    for name in ("MAX_ANGLE", "MAX_SCALE", "MAX_BEND", "MAX_RIPPLE"):
        monkeypatch.setattr(augmentation, name, 0.0)
    dataset = dataset_of(write_native_cases(tmp_path))
    source = source_of(dataset.cases[0], *native_volumes(), torch.device("cpu"))
    roi = roi_of(np.array([[1.0, 3, 5], [22, 37, 45]]), SIZE, 2, NATIVE_SHAPE)
    view = dataset._deformed_view(source, 4, roi, np.random.default_rng(0))
    box = Box((4, 8, 10), (19, 33, 41))  # of the ellipsoid
    expected = dataset._view(source, 4, Prompts(box), roi, np.random.default_rng(0))
    torch.testing.assert_close(view.image, expected.image, rtol=0, atol=1e-2)
    assert torch.equal(view.truth, expected.truth)
    assert (view.coarse_truth != expected.coarse_truth).float().mean() < 0.05
    assert (view.points[0] <= expected.points[0] + 1).all()
    assert (view.points[1] >= expected.points[1] - 1).all()


def test_a_box_in_the_roi_is_the_challenges():
    rng = np.random.default_rng(0)
    for shift in range(6):
        for _ in range(20):
            truth = ndimage.gaussian_filter(rng.standard_normal([24] * 3), 2) > 0.05
            box = middle_extent(truth).box((shift, 2 * shift), (24, 24))
            points = box_points(torch.from_numpy(truth), (shift, 2 * shift))
            assert points.tolist() == [[*box.start], [n - 1 for n in box.stop]]


DRAWS = dict(settings=AdaptiveSettings(drawings=True))


def test_a_third_of_the_samples_begins_with_a_drawing(tmp_path):
    dataset = dataset_of(write_native_cases(tmp_path), **DRAWS)
    samples = [dataset[(epoch, 0)] for epoch in range(120)]
    drawn = [s for s in samples if s.start.drawings.any()]
    assert 20 < len(drawn) < 55
    kinds = [tuple(s.start.drawings[0].flatten(1).any(dim=1).tolist()) for s in drawn]
    assert set(kinds) == {(True, False, False, False), (False, False, True, False)}
    covered = []
    for sample in drawn:
        assert not (sample.start.labels >= 0).any() and sample.truth.any()
        where = sample.start.drawings[0].any(dim=0)
        truth = torch.nn.functional.max_pool3d(sample.truth[0].float(), 2)[0] > 0
        covered.append((where & truth).sum() / where.sum())
    assert min(covered) > 0.3 and np.mean(covered) > 0.75  # flipped and turned as the truth is
    batch = collate(samples)
    assert batch.start.drawings.shape == (120, 4, SIZE // 2, SIZE // 2, SIZE // 2)


def test_samples_are_the_same_where_the_volumes_are_tensors(tmp_path):
    """As on a GPU, but for the device."""
    dataset = dataset_of(write_native_cases(tmp_path, 2), **DRAWS, artefacts=0.3)
    expected = [dataset[(epoch, epoch % 2)] for epoch in range(40)]
    for path, source in dataset._sources.items():
        held = torch.tensor(source.image), torch.tensor(source.gts)
        dataset._sources[path] = replace(source, held=held)
    for epoch, sample in enumerate(expected):
        again = dataset[(epoch, epoch % 2)]
        torch.testing.assert_close(again.image, sample.image, rtol=0, atol=1e-4)
        assert torch.equal(again.truth, sample.truth)
        for ours, theirs in zip(again.start, sample.start, strict=True):
            assert torch.equal(ours, theirs)


def test_an_object_is_looked_at_once(tmp_path, monkeypatch):
    dataset = dataset_of(write_native_cases(tmp_path))
    looked = []

    def record(*args):
        looked.append(args)
        return middle_extent(*args)

    monkeypatch.setattr(object_shape, "middle_extent", record)
    for epoch in range(30):
        dataset[(epoch, 0)]
    assert len(looked) == 2  # labels of the case


def test_a_case_of_many_labels_comes_more_than_once(tmp_path):
    gts = np.arange(1, 101, dtype=np.uint8).repeat(30).reshape(25, 8, 15)
    write_prepared(tmp_path / "many.npz", gts, gts, NATIVE_SPACING, b"", is_native=True)
    write_native_cases(tmp_path)
    dataset = dataset_of(tmp_path)
    names = Counter(dataset.case(0, i).path.name for i in range(len(dataset)))
    assert names == {"many.npz": 22, "0.npz": 2}


def test_samples_are_filled_up_to_a_batch(tmp_path):
    dataset = dataset_of(write_native_cases(tmp_path))
    samples = [dataset[(epoch, 0)] for epoch in range(30)]
    assert {s.start[0].shape[1] for s in samples} == {1, 2}
    points, labels, mask, drawn = collate(samples).start
    assert drawn is None
    assert points.shape == (30, 2, 3) and labels.shape == (30, 2)
    assert mask.shape == (30, 1, MASK_SIZE, MASK_SIZE, MASK_SIZE)
    for i, sample in enumerate(samples):
        count = sample.start[0].shape[1]
        assert torch.equal(points[i, :count], sample.start[0][0])
        assert (labels[i, count:] == -1).all()


@pytest.mark.parametrize("is_native", [True, False])
def test_cases_of_the_other_recipe_are_refused(is_native, tmp_path):
    image, gts = native_volumes()
    write_prepared(tmp_path / "a.npz", image, gts, NATIVE_SPACING, b"", is_native=is_native)
    cases, failures = find_cases([tmp_path], 20, is_native=not is_native)
    way = "without" if is_native else "with"
    (message,) = failures.values()
    assert not cases and message.startswith(f"a.npz: expected a case prepared {way} --native")


def test_half_of_the_boxes_are_moved_as_in_whole_slices():
    _, gts = native_volumes()
    extent = ObjectShape(gts, 4, np.array([[4.0, 8, 10], [19, 33, 41]]), MASK_SIZE).extent
    starts = [moved_box(extent, gts.shape, np.random.default_rng(i)).start[1] for i in range(400)]
    moved = 8 - np.array(starts)
    assert 0.25 < np.mean(moved > 0) < 0.5  # a shift of 0, or slices of the case's own 50 x 70
    assert moved.min() == 0 and moved.max() == 8


def test_a_perturbed_mask_is_wrong_in_places_but_not_another_one():
    truth = torch.zeros(16, 16, 16, dtype=torch.bool)
    truth[4:12, 3:13, 5:11] = True
    masks = [perturbed_mask(truth, np.random.default_rng(seed)) for seed in range(40)]
    shares = [2 * (m & truth).sum() / (m.sum() + truth.sum()) for m in masks]
    assert min(shares) > 0.1 and 0.5 < np.mean(shares) < 0.97 and np.std(shares) > 0.05


def test_the_signed_distance_is_that_of_edt_up_to_a_limit():
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal([48] * 3), 9)
    limit = adaptive_dataset.MAX_WRONG
    distance = signed_distance(torch.from_numpy(noise > 0))
    expected = torch.from_numpy(sdf(noise > 0))
    assert expected.max() > limit and expected.min() < -limit
    torch.testing.assert_close(distance.clamp(-limit, limit), expected.clamp(-limit, limit))


def test_the_rule_of_a_click_is_drawn_for_each_round(tmp_path, monkeypatch):
    step, batch = step_and_batch(tmp_path)
    batch.draws[:] = 0.99
    rules = batch.draws.unflatten(1, (ADAPTIVE_ROUNDS, -1))[..., 0]
    rules[1, 2] = rules[2, 3] = rules[2, 4] = 0.0
    rules[:, :LOOKS] = 0.0  # where there is something to correct
    asked = []

    def record(pred, truth, draws, is_centred):
        asked.append(is_centred.nonzero()[:, 0].tolist())
        return error_clicks(pred, truth, draws, is_centred)

    monkeypatch.setattr(adaptive_step, "error_clicks", record)
    step.play(batch, {0})
    begun = batch.start.mask.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    assert asked == [begun, begun, [1], [2], [2], [], []]


def step_and_batch(tmp_path, count=4, **options):
    torch.manual_seed(0)
    model = sam_model_registry3D["hybrid_s"](**TINY_HYBRID).train()
    dataset = dataset_of(write_native_cases(tmp_path), mask_size=model.mask_size, **options)
    batch = collate([dataset[(epoch, 0)] for epoch in range(count)])
    return AdaptiveStep(model, DiceCELoss(sigmoid=True, squared_pred=True)), batch


def test_each_round_sees_all_clicks_before_it_and_the_binary_mask(tmp_path, monkeypatch):
    step, batch = step_and_batch(tmp_path)
    seen, decode = [], step.model.decode

    def record(embedding, points, mask_prompt, drawings):
        seen.append((*points, mask_prompt, decode(embedding, points, mask_prompt=mask_prompt)))
        return seen[-1][-1]

    monkeypatch.setattr(step.model, "decode", record)
    output = step.play(batch, {0, 2})
    assert len(seen) == ADAPTIVE_ROUNDS == len(output.round_losses)
    first = batch.start[0].shape[1]
    is_begun = batch.start[2].flatten(1).any(dim=1)
    assert is_begun.any() and not is_begun.all()
    for i, (points, labels, mask, _) in enumerate(seen):
        assert points.shape[1] == first + i + 1 == labels.shape[1]
        assert torch.equal(points[:, :first], batch.start[0])
        for click in labels[:, first:][:, :LOOKS].unbind(1):
            assert torch.equal(click >= 0, is_begun)  # a first click corrects a mask
        assert (labels[:, first + LOOKS :] >= 0).all()
        before = batch.start[2] if i == 0 else (seen[i - 1][3][0] > 0).float()
        assert torch.equal(mask, before) and not mask.requires_grad
    assert [logits.requires_grad for *_, (logits, _) in seen] == [i in {0, 2} for i in range(7)]
    assert torch.equal(output.clicks.points[2], seen[-1][0][:, first + 2 : first + 3])


def test_saving_memory_changes_no_gradient(tmp_path):
    step, batch = step_and_batch(tmp_path)
    gradients = []
    for step.save_memory in (True, False):
        step.zero_grad()
        step.play(batch, {0, 3}).loss.backward()
        gradients.append([p.grad.clone() for p in step.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_rounds_without_a_gradient_add_none(tmp_path):
    """The gradient of some rounds is that of the sum of their losses alone."""
    step, batch = step_and_batch(tmp_path, 2)
    gradients = []
    for graded in ({0}, {0, 4}, {4}):
        step.zero_grad()
        step.play(batch, graded).loss.backward()
        gradients.append([p.grad.clone() for p in step.parameters()])
    for first, both, fifth in zip(*gradients, strict=True):
        torch.testing.assert_close(first + fifth, both, rtol=1e-3, atol=1e-6)


def test_the_rounds_with_a_gradient_are_the_first_and_all_others_alike():
    chosen = [graded_rounds(stream(Stream.ROUNDS, 0, 1, step)) for step in range(500)]
    assert all(0 in rounds and len(rounds) == GRADED_ROUNDS for rounds in chosen)
    counts = np.bincount([i for rounds in chosen for i in rounds])
    assert len(counts) == ADAPTIVE_ROUNDS
    assert np.ptp(counts[1:]) < 0.3 * counts[1:].mean()
    again = [graded_rounds(stream(Stream.ROUNDS, 0, 1, step)) for step in range(500)]
    other = [graded_rounds(stream(Stream.ROUNDS, 0, 2, step)) for step in range(500)]
    assert chosen == again and chosen != other


def test_a_step_plays_the_rounds_that_its_stream_draws(tmp_path):
    step, batch = step_and_batch(tmp_path, 2)
    drawn = graded_rounds(stream(Stream.ROUNDS, 2))
    gradients = []
    for output in (step(batch, stream(Stream.ROUNDS, 2)), step.play(batch, drawn)):
        step.zero_grad()
        output.loss.backward()
        gradients.append([p.grad.clone() for p in step.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_iou():
    truth = torch.zeros(2, 1, 4, 4, 4, dtype=torch.bool)
    truth[:, :, :2] = True
    logits = torch.where(truth, 1.0, -1.0)
    logits[1, :, 1:3] = 1.0
    torch.testing.assert_close(iou_of(logits, truth), torch.tensor([[1.0], [2 / 3]]))


def test_synthetic_samples_join_those_of_the_cases(tmp_path):
    dataset = dataset_of(write_native_cases(tmp_path), synthetic=5)
    assert len(dataset) == 2 + 5
    samples = [dataset[(1, i)] for i in range(7)]
    assert [s.names[0].startswith("synthetic") for s in samples] == 2 * [False] + 5 * [True]
    assert samples[2].names == samples[5].names != samples[6].names
    again = dataset_of(tmp_path, synthetic=5)[(1, 4)]
    assert torch.equal(again.image, samples[4].image) and not torch.equal(
        again.image, samples[3].image
    )


def test_a_dataset_is_pickled_without_what_it_has_made(tmp_path):
    dataset = dataset_of(write_native_cases(tmp_path), synthetic=1)
    expected = dataset[(0, 2)]
    content = pickle.dumps(dataset)
    assert len(content) < 10_000
    assert torch.equal(pickle.loads(content)[(0, 2)].image, expected.image)


@pytest.mark.slow
def test_processes_that_are_spawned_make_the_same_samples(tmp_path):
    """The way of macOS and Windows, and of Python 3.14: the dataset is pickled."""
    dataset = dataset_of(write_native_cases(tmp_path), synthetic=1)
    expected = [dataset[(0, i)] for i in range(3)]
    loader = make_loader(dataset, EpochSampler(3, 1, seed=0), num_workers=1, pin_memory=False)
    loader.multiprocessing_context = "spawn"
    order = [index for ((_, index),) in loader.batch_sampler]
    for batch, index in zip(loader, order, strict=True):
        assert batch.names == expected[index].names
        assert torch.equal(batch.image, expected[index].image)


def test_cases_with_many_labels_give_their_shapes(tmp_path):
    image, gts = native_volumes()
    gts = (np.arange(gts.size) % 30).reshape(gts.shape).astype(np.uint8)
    write_prepared(tmp_path / "oblong.npz", image, gts, NATIVE_SPACING, b"", is_native=True)
    write_prepared(tmp_path / "even.npz", image, gts, (1.2, 1.0, 1.0), b"", is_native=True)
    (path,) = dataset_of(write_native_cases(tmp_path), synthetic=1).shapes
    assert path.name == "even.npz"


def test_where_no_mask_is_to_be_corrected_the_first_round_has_the_prompts_alone(
    tmp_path, plain, monkeypatch
):
    step, batch = step_and_batch(tmp_path, 2)
    counts, decode = [], step.model.decode

    def record(embedding, points, mask_prompt, drawings):
        counts.append((points[1] >= 0).sum(dim=1).tolist())
        return decode(embedding, points, mask_prompt=mask_prompt)

    monkeypatch.setattr(step.model, "decode", record)
    step.play(batch, {0})
    assert counts == [[n, n] for n in (2, 2, 3, 4, 5, 6, 7)]


def test_some_corrections_are_drawn_in_place_of_the_click(tmp_path, monkeypatch):
    """They add up; the click of the round is padding then."""
    step, batch = step_and_batch(tmp_path, **DRAWS)
    batch.start.drawings.zero_()  # what is drawn already would not be seen to be added
    draws = batch.draws.unflatten(1, (ADAPTIVE_ROUNDS, -1))
    draws[:, :, 2] = 0.99  # clicks, but for a lasso and a scribble
    draws[0, 2, 2], draws[1, 3, 2] = 0.0, drawings.LASSOED + 0.01
    seen, decode = [], step.model.decode

    def record(embedding, points, mask_prompt, drawings):
        seen.append((points[1], drawings))
        return decode(embedding, points, mask_prompt=mask_prompt, drawings=drawings)

    monkeypatch.setattr(step.model, "decode", record)
    step.play(batch, {0, 2, 3}).loss.backward()
    assert step.model.mask_decoder.prompt_fine.weight.grad[:, 4:].abs().sum() > 0
    first = batch.start.points.shape[1]
    for i, (labels, drawn) in enumerate(seen):
        added = drawn - (batch.start.drawings.float() if i == 0 else seen[i - 1][1])
        assert (added >= 0).all()
        changed = added.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
        assert changed == {2: [0], 3: [1]}.get(i, [])
        if i >= LOOKS:
            padding = (labels[:, first + i] < 0).nonzero()[:, 0].tolist()
            assert padding == changed
    lasso, scribble = (seen[-1][1] - seen[0][1])[:2].flatten(2).any(dim=2).tolist()
    assert not any(lasso[:2]) and any(lasso[2:]) and any(scribble[:2]) and not any(scribble[2:])
