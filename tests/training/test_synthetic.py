"""Synthetic cases: what they hold, and that a seed makes the same one again."""

import numpy as np
import pytest
import torch

from utils.formats.label_map import LabelMap
from utils.formats.prepared import boxes_and_counts
from utils.training import synthetic
from utils.training.fields import RandomFields
from utils.training.synthetic import cells, make_case, organs

SIDE = 40


def make(seed, *args):
    return make_case(seed, *args, side=SIDE)


def fields_of(seed=0):
    return RandomFields(seed, SIDE, torch.device("cpu"))


def test_a_seed_makes_the_same_case_again():
    for a, b in ((make(3), make(3)), (make(4), make(4))):
        assert (a.image == b.image).all() and (a.gts == b.gts).all() and a.spacing == b.spacing
    assert make(3).image.shape != make(4).image.shape or (make(3).image != make(4).image).any()


def test_cases_are_as_varied_as_they_should_be():
    cases = [make(seed) for seed in range(60)]
    for case in cases:
        assert case.image.shape == case.gts.shape and case.image.shape[1:] == (SIDE, SIDE)
        assert case.image.dtype == np.uint8 and case.image.max() > 200
        assert case.gts.any()
        thickness = case.spacing[0] / case.spacing[1]
        assert case.spacing[1] == case.spacing[2] and len(case.image) == SIDE // round(thickness)
    assert {len(case.image) for case in cases} >= {40, 20, 13, 6}
    counts = [len(np.unique(case.gts)) - 1 for case in cases]
    assert min(counts) <= 3 and max(counts) >= 20
    # Labels are seen in the image: mostly, their grey values are not those around them.
    shown = []
    for case in cases:
        values = np.unique(case.gts)[1:]
        boxes, sizes = boxes_and_counts(case.gts, values)
        largest = int(sizes.argmax())
        region = tuple(slice(a, b) for a, b in boxes[largest])
        inside = case.gts[region] == values[largest]
        if inside.all():
            continue
        image = case.image[region].astype(float)
        contrast = abs(image[inside].mean() - image[~inside].mean())
        shown.append(contrast / max(image.std(), 1))
    assert np.median(shown) > 0.3


def blocks(names=None):
    """27 blocks, labels 1 to 27."""
    gts = np.kron(np.arange(1, 28).reshape(3, 3, 3), np.ones((20, 24, 28))).astype(np.uint8)
    return LabelMap(gts, names or {})


def test_shapes_of_a_label_map():
    asked = []

    def labels():
        asked.append(1)
        return blocks()

    counts = [len(np.unique(make(seed, [labels]).gts)) for seed in range(30)]
    assert 8 <= len(asked) <= 22 and max(counts) > 5  # MAPPED of them
    grid = synthetic.deformed_grid(fields_of(1))
    whole, names = synthetic.deformed_labels(fields_of(), grid, blocks())
    assert set(torch.unique(whole).tolist()) == set(range(int(whole.max()) + 1)) and not names


def test_a_part_of_a_map_where_nothing_is_gives_way_to_other_shapes(monkeypatch):
    monkeypatch.setattr(synthetic, "MAPPED", 1.0)
    monkeypatch.setattr(synthetic, "DISTRACTORS", 0.0)
    for seed in range(30):
        assert make(seed, [lambda: LabelMap(np.zeros((50, 60, 70), np.uint8))]).gts.any()


def test_names_stay_with_their_labels():
    called = {i: f"block {i}" for i in range(1, 28) if i != 14}
    grid = synthetic.deformed_grid(fields_of(1))
    for seed in range(6):
        plain, _ = synthetic.deformed_labels(fields_of(seed), grid, blocks())
        gts = blocks().gts
        one = LabelMap((gts == 5).astype(np.uint8), {1: "the fifth"})
        alone, its_name = synthetic.deformed_labels(fields_of(seed), grid, one)
        labels, names = synthetic.deformed_labels(fields_of(seed), grid, blocks(called))
        assert torch.equal(labels, plain) and "block 14" not in names.values()
        if alone.any():
            assert its_name == {1: "the fifth"}
            (label,) = (k for k, name in names.items() if name == "block 5")
            assert torch.equal(labels == label, alone == 1)


def test_lesions_lie_within_an_object():
    fields = fields_of(3)
    grid = synthetic.deformed_grid(fields)
    labels, _ = synthetic.deformed_labels(fields, grid, blocks())
    found = 0
    for _ in range(10):
        marked = synthetic.with_lesions(fields, grid, labels)
        assert torch.equal(marked == 0, labels == 0)
        for value in range(int(labels.max()) + 1, int(marked.max()) + 1):
            found += 1
            inside = marked == value
            assert not inside.any() or len(torch.unique(labels[inside])) == 1
    assert found >= 10
    nothing = torch.zeros_like(labels)
    assert torch.equal(synthetic.with_lesions(fields, grid, nothing), nothing)


def test_a_map_of_named_tissues_is_painted_as_ct(monkeypatch):
    """Vessels filled with contrast agent are brighter than muscle, which is brighter than fat."""
    monkeypatch.setattr(synthetic, "MAPPED", 1.0)
    monkeypatch.setattr(synthetic, "PAINTED", 1.0)
    monkeypatch.setattr(synthetic, "LESIONS", 0.0)
    monkeypatch.setattr(synthetic, "DISTRACTORS", 0.0)
    calls = []
    painted = synthetic.scanned_ct

    def scanned(fields, labels, names):
        image = painted(fields, labels, names)
        calls.append({name: float(image[labels == k].mean()) for k, name in names.items()})
        return image

    monkeypatch.setattr(synthetic, "scanned_ct", scanned)
    named = {1: "left_psoas_muscle", 14: "abdominal_fat", 27: "Femur"}
    gts = blocks().gts
    for seed in range(12):
        make(seed, [lambda: LabelMap(np.where(np.isin(gts, list(named)), gts, 0), named)])
    both = [c for c in calls if {"left_psoas_muscle", "abdominal_fat"} <= set(c)]
    assert len(calls) == 12 and both
    assert all(c["left_psoas_muscle"] >= c["abdominal_fat"] for c in both)


@pytest.mark.parametrize("style", synthetic.STYLES, ids=lambda style: style.__name__)
def test_every_style_paints_what_is_there(style):
    fields = fields_of(5)
    labels = organs(fields, synthetic.deformed_grid(fields))
    image = style(fields, labels)
    assert image.shape == labels.shape and image.isfinite().all() and image.std() > 0


@pytest.mark.parametrize("name", ["blob", "shell", "tree", "tube", "wings", "sheet"])
def test_every_kind_of_shape_is_found_where_it_is_put(name):
    found = []
    for seed in range(10):
        fields = fields_of(seed)
        axis = torch.linspace(-1, 1, SIDE)
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
        part = getattr(synthetic, name)(fields, grid, torch.zeros(3), 0.5)[0]
        found.append(int(part.sum()))
        assert part.shape == (SIDE,) * 3 and part.sum() < 0.6 * part.numel()
    assert np.median(found) > 50


def test_a_shell_and_what_it_holds_are_apart():
    fields = fields_of(2)
    grid = synthetic.deformed_grid(fields)
    for _ in range(10):
        parts = synthetic.shell(fields, grid, torch.zeros(3), 0.6)
        assert len(parts) == 1 or not (parts[0] & parts[1]).any()


def test_cells_are_many_and_alike():
    fields = fields_of(7)
    labels = cells(fields, synthetic.deformed_grid(fields))
    sizes = np.bincount(labels.flatten().numpy())[1:]
    assert (sizes > 0).sum() >= 5


def test_smooth_fields_have_unit_variance_and_are_smooth():
    field = fields_of().smooth(4, 8)
    assert field.shape == (8, SIDE, SIDE, SIDE)
    assert field.std() == pytest.approx(1, abs=0.15)
    assert field.diff(dim=1).std() < 0.3
