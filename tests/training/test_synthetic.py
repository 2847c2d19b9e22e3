"""Synthetic cases: what they hold, and that a seed makes the same one again."""

import numpy as np
import pytest
import torch

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


def test_shapes_of_a_real_case():
    blocks = np.kron(np.arange(1, 28).reshape(3, 3, 3), np.ones((20, 24, 28))).astype(np.uint8)
    asked = []

    def labels():
        asked.append(1)
        return blocks

    counts = [len(np.unique(make(seed, [labels]).gts)) for seed in range(30)]
    assert 4 <= len(asked) <= 20 and max(counts) > 5  # REAL_SHAPES of them
    whole = synthetic.deformed_labels(fields_of(), synthetic.deformed_grid(fields_of(1)), labels)
    assert set(torch.unique(whole).tolist()) == set(range(int(whole.max()) + 1))


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
