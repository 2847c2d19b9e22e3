"""Scribbles and lassos: where they lie, and that they look as if drawn by hand."""

import numpy as np
import torch
from scipy import ndimage

from utils.training.drawings import (
    DRAWS,
    LASSOED,
    drawn_corrections,
    into_slice,
    lasso,
    part_at,
    scribble,
    slice_through,
)

SIZE = 40


def blobs(count: int, seed: int = 0) -> torch.Tensor:
    """(count, SIZE, SIZE) bool, one connected region each."""
    rng = np.random.default_rng(seed)
    regions = []
    for _ in range(count):
        noise = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), 5)
        numbers, _ = ndimage.label(noise > np.quantile(noise, 0.7))
        regions.append(numbers == np.bincount(numbers[numbers > 0]).argmax())
    return torch.from_numpy(np.stack(regions))


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(seed))


def test_a_slice_is_taken_and_put_back():
    volumes = torch.rand(6, 5, 5, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    at = torch.tensor([[i % 5, (i + 1) % 5, (i + 3) % 5] for i in range(6)])
    axis = torch.tensor([0, 1, 2, 0, 1, 2])
    planes = slice_through(volumes, at, axis)
    back = into_slice(planes, at, axis)
    for i in range(6):
        where = int(at[i, axis[i]])
        assert torch.equal(planes[i], volumes[i].select(int(axis[i]), where))
        assert torch.equal(back[i].select(int(axis[i]), where), planes[i])
        assert back[i].sum() == planes[i].sum()


def test_the_part_round_a_pixel_is_its_component():
    planes = torch.from_numpy(np.random.default_rng(1).random((8, SIZE, SIZE)) > 0.55)
    for i, plane in enumerate(planes):
        numbers, _ = ndimage.label(plane, np.ones((3, 3)))
        y, x = np.argwhere(plane.numpy())[40 * i]
        part = part_at(plane[None], torch.tensor([[y, x]]))[0].numpy()
        reached = ndimage.binary_dilation(
            (np.indices(plane.shape).T == [y, x]).all(axis=-1).T,
            np.ones((3, 3)),
            iterations=48,
            mask=plane.numpy(),
        )
        assert (part == reached).all() and (part <= (numbers == numbers[y, x])).all()
    assert not part_at(torch.zeros(1, 5, 5, dtype=torch.bool), torch.tensor([[2, 2]])).any()


def test_a_scribble_is_a_thin_line_along_its_region():
    regions = blobs(60)
    lines = scribble(regions, draws(60))
    shares = []
    for line, region in zip(lines.numpy(), regions.numpy(), strict=True):
        assert line.any() and (line <= region).all()
        _, parts = ndimage.label(line, np.ones((3, 3)))
        assert parts <= 3  # a concave region may interrupt it
        extents = [np.ptp(np.flatnonzero(region.any(axis=axis))) + 1 for axis in (0, 1)]
        drawn = [np.ptp(np.flatnonzero(line.any(axis=axis))) + 1 for axis in (0, 1)]
        assert line.sum() < 3.5 * max(extents)
        shares.append(drawn[int(np.argmax(extents))] / max(extents))
    assert 0.6 < np.mean(shares) < 0.95 and np.std(shares) > 0.05
    depths = [ndimage.distance_transform_edt(region) for region in regions.numpy()]
    along = [depth[line].mean() for depth, line in zip(depths, lines.numpy(), strict=True)]
    everywhere = [depth[depth > 0].mean() for depth in depths]
    assert np.mean(along) > np.mean(everywhere)  # along the middle, and out to both ends


def test_a_scribble_trembles_as_it_is_drawn():
    regions = blobs(1).expand(2, -1, -1)
    first, second = scribble(regions, draws(2))
    assert (first != second).any()


def test_a_lasso_holds_its_region_and_is_smoother():
    regions = blobs(60, 1)
    rough = regions & (torch.rand(regions.shape, generator=torch.Generator().manual_seed(2)) > 0.1)
    outlined = lasso(rough, draws(60, 1))
    shares = (outlined & regions).flatten(1).sum(1) / regions.flatten(1).sum(1)
    growth = outlined.flatten(1).sum(1) / regions.flatten(1).sum(1)
    assert shares.min() > 0.9 and 1.0 < growth.mean() < 1.6


def test_small_and_empty_regions():
    regions = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    regions[0, 5, 7] = True
    for draw in (scribble, lasso):
        drawn = draw(regions, draws(2))
        assert drawn[0, 5, 7] and not drawn[1].any()


def test_a_correction_lies_on_the_error_that_is_clicked():
    """A ball that is missed and one too many, in one prediction; across each axis."""
    index = torch.arange(SIZE)
    z, y, x = torch.meshgrid(index, index, index, indexing="ij")
    missed = (z - 10) ** 2 + (y - 12) ** 2 + (x - 14) ** 2 < 50
    surplus = (z - 28) ** 2 + (y - 27) ** 2 + (x - 26) ** 2 < 50
    truth, pred = missed.expand(6, 1, -1, -1, -1), surplus.expand(6, 1, -1, -1, -1)
    points = torch.tensor([[[10.0, 12, 14]], [[28.0, 27, 26]]] * 3)
    labels = torch.tensor([[1], [0]] * 3)
    how = torch.full((6, 2 + DRAWS), 0.3)
    how[:, 1] = torch.tensor([0.0, 0.4, 0.9, 0.0, 0.4, 0.9])
    how[:, 0] = torch.tensor([0.0, 0.0, 0.0, LASSOED, LASSOED, 0.9])
    drawn, is_drawn = drawn_corrections(pred, truth, points, labels, how)
    assert drawn.shape == (6, 4, SIZE // 2, SIZE // 2, SIZE // 2)
    assert is_drawn.tolist() == [True] * 5 + [False]
    for i, channel in enumerate((2, 3, 2, 1, 0)):
        assert [bool(c.any()) for c in drawn[i]] == [k == channel for k in range(4)]
        at = drawn[i, channel].nonzero() * 2.0 + 0.5
        axis = i % 3
        assert (at[:, axis] - points[i, 0, axis]).abs().max() <= 1
        assert (at - points[i, 0]).norm(dim=1).max() < 10
    assert not drawn[5].any()


def test_nothing_is_drawn_where_all_is_right():
    truth = torch.zeros(1, 1, SIZE, SIZE, SIZE, dtype=torch.bool)
    truth[..., 5:9] = True
    point, label = torch.tensor([[[3.0, 3, 6]]]), torch.tensor([[1]])
    drawn, is_drawn = drawn_corrections(truth, truth, point, label, torch.zeros(1, 2 + DRAWS))
    assert not drawn.any() and not is_drawn.any()
