"""Training samples: the ROI of the published recipe, what is drawn, and bad files."""

from collections import Counter

import numpy as np
import pytest
import torch
import torchio as tio

from segment_anything.roi import normalise
from utils.formats.npz import CaseError
from utils.formats.prepared import write_prepared
from utils.training.batch import collate
from utils.training.dataset import (
    EpochSampler,
    RoiDataset,
    find_cases,
    make_loader,
)

SHAPE = (20, 33, 41)
SIZE = 24


def write_case(path, seed=0, labels=None):
    """A prepared case with a small and a large label, both touching what surrounds them."""
    rng = np.random.default_rng(seed)
    gts = np.zeros(SHAPE, np.uint8)
    gts[3:18, 5:30, 2:21], gts[6:9, 2:4, 30:36] = labels or (5, 9)
    image = rng.integers(1, 256, SHAPE, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_prepared(path, image, gts, (1.5, 1.5, 1.5), b"")
    return image, gts


def dataset_of(folder, **options):
    cases, failures = find_cases([folder], options.get("min_voxels", 10))
    assert not failures
    return RoiDataset(cases, SIZE, **{"min_voxels": 10} | options)


@pytest.mark.parametrize("label", [5, 9])
def test_a_roi_is_that_of_torchio_crop_or_pad(tmp_path, label):
    image, gts = write_case(tmp_path / "a.npz")
    dataset = dataset_of(tmp_path)
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.from_numpy(image)[None].float()),
        label=tio.LabelMap(tensor=torch.from_numpy((gts == label).astype(np.uint8))[None]),
    )
    cropped = tio.CropOrPad(SIZE, mask_name="label")(subject)
    expected, truth = normalise(cropped.image.data), cropped.label.data.bool()
    for epoch in range(100):  # until both labels have come, with no axis flipped
        sample = dataset[(epoch, 0)]
        if torch.allclose(sample.image[0], expected, atol=1e-5):
            assert torch.equal(sample.truth[0], truth)
            return
    pytest.fail("never drawn")


def test_labels_and_flips_are_drawn_evenly(tmp_path):
    write_case(tmp_path / "a.npz")
    dataset = dataset_of(tmp_path)
    kinds = Counter()
    for epoch in range(160):
        truth = dataset[(epoch, 0)].truth[0, 0]
        sides = tuple(bool(c < SIZE / 2) for c in truth.nonzero().float().mean(dim=0).tolist())
        kinds[(int(truth.sum()) > 1000, sides)] += 1
    assert sum(n for (is_large, _), n in kinds.items() if is_large) in range(60, 100)
    assert len({sides for is_large, sides in kinds if is_large}) >= 2


def test_image_and_truth_are_flipped_together(tmp_path):
    image, gts = write_case(tmp_path / "a.npz")
    image = np.where(gts == 5, 200, 100).astype(np.uint8)
    write_prepared(tmp_path / "a.npz", image, gts, (1.5, 1.5, 1.5), b"")
    dataset = dataset_of(tmp_path, min_voxels=1000)
    seen = set()
    for epoch in range(20):
        sample = dataset[(epoch, 0)]
        values = sample.image[sample.truth]
        assert values.min() == values.max() == sample.image.max()
        seen.add(sample.truth.numpy().tobytes())
    assert len(seen) > 2


def test_a_sample_follows_from_seed_epoch_and_case(tmp_path):
    for i in range(3):
        write_case(tmp_path / f"{i}.npz", i)
    first, same, other = (dataset_of(tmp_path, seed=seed)[(4, 1)] for seed in (0, 0, 1))
    assert torch.equal(first.image, same.image) and torch.equal(first.draws, same.draws)
    assert not torch.equal(first.draws, other.draws)
    assert not torch.equal(first.draws, dataset_of(tmp_path)[(5, 1)].draws)


def test_workers_make_the_batches_of_one_process(tmp_path):
    for i in range(5):
        write_case(tmp_path / f"{i}.npz", i)
    batches = []
    for workers in (0, 2):
        dataset = dataset_of(tmp_path)
        sampler = EpochSampler(len(dataset), 2, seed=0)
        batches.append(list(make_loader(dataset, sampler, workers, pin_memory=False)))
    for one, two in zip(*batches, strict=True):
        assert one.names == two.names and torch.equal(one.image, two.image)
        assert one.image.shape == one.truth.shape == (2, 1, SIZE, SIZE, SIZE)


def test_small_labels_are_never_drawn_and_cases_of_them_left_out(tmp_path):
    write_case(tmp_path / "both.npz")
    gts = np.zeros(SHAPE, np.uint8)
    gts[:5, :5, :4] = 1
    write_prepared(tmp_path / "small.npz", gts, gts, (1.5, 1.5, 1.5), b"")
    dataset = dataset_of(tmp_path, min_voxels=100)
    assert [case.path.name for case in dataset.cases] == ["both.npz"]
    assert all(dataset[(epoch, 0)].truth.sum() > 100 for epoch in range(20))


def test_a_bad_file_is_named_and_the_next_case_taken(tmp_path):
    for name in "abc":
        write_case(tmp_path / f"{name}.npz")
    dataset = dataset_of(tmp_path)
    (tmp_path / "b.npz").write_bytes(b"broken")
    (tmp_path / "c.npz").unlink()
    sample = dataset[(0, 1)]
    assert sample.names == ("a.npz",)
    assert [path[-5:] for path in sample.failures] == ["b.npz", "c.npz"]
    batch = collate([dataset[(0, 0)], sample])
    assert batch.names == ("a.npz", "a.npz") and batch.failures == sample.failures
    (tmp_path / "a.npz").unlink()
    with pytest.raises(CaseError, match="none of 3 samples has a label .* 3 can't be read"):
        dataset[(0, 0)]


def test_bad_files_are_found_before_training(tmp_path):
    write_case(tmp_path / "nested/a.npz")
    (tmp_path / "b.npz").write_bytes((tmp_path / "nested/a.npz").read_bytes()[:-100])
    cases, failures = find_cases([tmp_path, tmp_path / "nested"], 10)
    assert [case.path.name for case in cases] == ["a.npz"]
    assert [path[-5:] for path in failures] == ["b.npz"]


def test_a_label_that_its_roi_misses_is_no_bad_file_but_left_for_the_next_case(tmp_path):
    gts = np.zeros((60, 60, 60), np.uint8)
    gts[:12, :12, :12] = gts[-12:, -12:, -12:] = 1  # nothing in the middle
    write_prepared(tmp_path / "a.npz", gts, gts, (1.5, 1.5, 1.5), b"")
    with pytest.raises(CaseError, match="none of 1 samples has a label of more than 10 voxels"):
        dataset_of(tmp_path)[(0, 0)]
    write_case(tmp_path / "b.npz")
    sample = dataset_of(tmp_path)[(0, 0)]
    assert sample.names == ("b.npz",) and not sample.failures


@pytest.mark.parametrize(
    "changes",
    [
        dict(labels=np.array(5)),
        dict(labels=np.zeros((1, 3), int)),
        dict(label_boxes=np.zeros((1, 3, 2))),
        dict(label_boxes=np.full((1, 3, 2), 99)),
        dict(imgs=np.zeros(SHAPE, np.float32)),
        dict(gts=np.zeros(SHAPE, ">u2")),
        dict(gts=np.zeros(SHAPE[1:], np.uint8)),
    ],
)
def test_malformed_files_are_refused_when_they_are_found(tmp_path, changes):
    gts = np.ones(SHAPE, np.uint8)
    write_prepared(tmp_path / "a.npz", gts, gts, (1.5,) * 3, b"")
    with np.load(tmp_path / "a.npz") as file:
        np.savez(tmp_path / "a.npz", **{**file, **changes})
    cases, failures = find_cases([tmp_path], 10)
    assert not cases and "a.npz: expected" in failures[str(tmp_path / "a.npz")]


def test_two_processes_see_what_one_with_the_double_batch_sees():
    one = EpochSampler(11, 4, seed=3)
    two = [EpochSampler(11, 2, seed=3, rank=rank, count=2) for rank in range(2)]
    assert len(one) == len(two[0]) == 3
    for whole, *parts in zip(one, *two, strict=True):
        assert whole == parts[0] + parts[1]


def test_an_epoch_takes_each_case_once_and_fills_the_last_batch():
    sampler = EpochSampler(11, 4, seed=3)
    indices = [index for batch in sampler for _, index in batch]
    assert sorted(indices[:11]) == list(range(11)) and indices[11] == indices[0]
    first, sampler.epoch = indices, 1
    assert [index for batch in sampler for _, index in batch] != first


def test_a_sampler_goes_on_within_an_epoch():
    sampler = EpochSampler(11, 4, seed=3)
    batches = list(sampler)
    sampler.first = 2
    assert list(sampler) == batches[2:] and len(sampler) == 3
    sampler.first = 3
    assert list(sampler) == []
