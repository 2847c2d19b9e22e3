"""DSC, NSD and AUC: exact by hand, and NSD equal to MONAI's."""

import warnings

import numpy as np
import pytest
import torch
from monai.metrics.surface_dice import compute_surface_dice
from scipy import ndimage

from utils.evaluation import metrics
from utils.evaluation.metrics import auc, dsc, nsd


def boxes(*regions) -> np.ndarray:
    mask = np.zeros((10, 14, 18), bool)
    for region in regions:
        mask[region] = True
    return mask


def monai_nsd(truth: np.ndarray, pred: np.ndarray, spacing) -> float:
    y_pred, y = (torch.from_numpy(np.pad(mask, 1))[None, None] for mask in (pred, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about its own call
        value = compute_surface_dice(
            y_pred,
            y,
            [2.0],
            include_background=True,
            spacing=[float(s) for s in spacing],
            use_subvoxels=True,
        )
    return float(value)


def test_dsc_by_hand():
    truth, pred = boxes(np.s_[2:5, 3:9, 4:8]), boxes(np.s_[2:5, 5:9, 4:8])
    assert dsc(truth, pred) == 2 * 48 / (72 + 48)
    assert dsc(truth, truth) == 1 and dsc(truth, truth & False) == 0
    assert np.isnan(dsc(truth & False, truth & False))


def test_nsd_by_hand():
    truth = boxes(np.s_[2:5, 3:9, 4:8])
    assert nsd(truth, truth, [(3, 1, 0.5)]) == [1]
    shifted = boxes(np.s_[2:5, 3:9, 5:9])
    assert nsd(truth, shifted, [(3, 1, 2.0), (3, 1, 0.5)]) == [1, 1]
    assert nsd(truth, shifted, [(3, 1, 2.01)])[0] < 1
    assert nsd(truth, shifted, [(0.1, 0.1, 2.01), (3, 1, 2.5)]) == pytest.approx(
        [monai_nsd(truth, shifted, s) for s in [(0.1, 0.1, 2.01), (3, 1, 2.5)]], abs=1e-6
    )


@pytest.mark.parametrize("spacing", [(3, 1, 0.5), (0.05, 0.05, 0.05)])
def test_nsd_of_empty_masks(spacing):
    truth = boxes(np.s_[2:5, 3:9, 4:8])
    assert nsd(truth, truth & False, [spacing]) == [0] == nsd(truth & False, truth, [spacing])
    assert np.isnan(nsd(truth & False, truth & False, [spacing])).all()


@pytest.mark.parametrize("seed", range(8))
def test_nsd_equals_monai_at_any_spacing(seed):
    """Coarse spacings look at neighbours, fine ones transform distances."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(3, 20, 3))
    truth = ndimage.gaussian_filter(rng.normal(size=shape), 1) > 0.1
    pred = ndimage.gaussian_filter(rng.normal(size=shape) + 2 * truth - 1, 1) > 0.1
    truth[0, 0, 0] = pred[0, 0, 0] = True  # at the border, and not empty
    spacings = [tuple(rng.choice(choice, 3)) for choice in ([0.4, 1, 1.2, 3, 5], [0.05, 0.1, 0.25])]
    assert metrics._ball(spacings[0], 2.0, (20, 20, 20)) is not None
    assert metrics._ball(spacings[1], 2.0, (20, 20, 20)) is None
    expected = [monai_nsd(truth, pred, spacing) for spacing in spacings]
    assert nsd(truth, pred, spacings) == pytest.approx(expected, abs=1e-6)


def test_auc_is_over_the_clicks():
    assert auc(np.array([0, 1, 1, 1, 1, 1])) == 4
    assert auc(np.array([1, 0, 0.25, 0.5, 0.75, 1])) == 2
