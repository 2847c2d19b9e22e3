"""Grey levels that are not what an option means are refused or named, and scaled where possible."""

import re

import numpy as np
import pytest

from utils.formats.intensity import CT_WINDOWS, scale, scale_percentiles, scale_window, to_grey

ABDOMEN = CT_WINDOWS["abdomen"]  # -160 to 240


def body(rng=None):
    """HU of a body in air, with a brighter organ."""
    rng = rng or np.random.default_rng(0)
    hu = np.full((12, 20, 24), -1000.0)
    hu[:, 3:-3, 3:-3] = 20
    hu[3:9, 6:12, 6:12] = 110
    return hu + rng.normal(0, 15, hu.shape)


def test_hu_in_a_window_need_no_word():
    grey, notices = to_grey(body(), ABDOMEN)
    np.testing.assert_array_equal(grey, scale_window(body(), *ABDOMEN))
    assert notices == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hu: (hu.clip(-160, 240) + 160) / 400, "if it was scaled before, leave"),
        (lambda hu: hu / 1000, "if it was scaled before, leave the window out"),
        (lambda hu: hu[:, 3:-3, 3:-3] + 1024, r"got 9\d\d.* to 11\d\d.*: is it HU \+ 1024\?"),
        (lambda hu: hu - 4000, "expected HU in the window -160 to 240, got -50"),
        (lambda hu: 0 * hu, "if it was scaled before"),
        (lambda hu: np.where(hu > 0, np.nan, hu), "expected finite values"),
    ],
)
def test_what_a_window_does_not_show_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        to_grey(change(body()), ABDOMEN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda hu: (hu + 1024).clip(0),
            "no value is below 0, or hardly one, of 0 to .*: is it HU, or HU",
        ),
        (lambda hu: scale_window(hu, *ABDOMEN), "no value is below 0, or hardly one, of 0 to 1.."),
        (lambda hu: np.where(hu < 130, hu - 2000, hu), r"shows \d\.\d% of its voxels, of -30"),
    ],
)
def test_what_a_window_shows_badly_is_said(change, message):
    _, (notice,) = to_grey(change(body()), ABDOMEN)
    assert re.search(message, notice)


@pytest.mark.parametrize("window", [(40.0, 80.0), (300.0, 400.0)])
@pytest.mark.parametrize("noise", [0, -3])
def test_a_window_above_0_says_so_too(window, noise):
    """HU + 1024 in a brain's window, with or without a voxel below 0."""
    shifted = (body() + 1024).clip(0)
    shifted[0, 0, 0] = noise
    _, (notice,) = to_grey(shifted, window)
    assert "is it HU, or HU + 1024" in notice or "of its voxels, of" in notice


def test_images_around_zero_keep_what_is_below_it():
    hu = body()[:, 3:-3, 3:-3]
    scores = ((hu - hu.mean()) / hu.std()).astype(np.float32)
    unit = 2 * (hu.clip(-160, 240) + 160) / 400 - 1
    for image in (scores, unit):
        grey, (notice,) = to_grey(image, None)
        assert "of its voxels are below 0" in notice
        low, high = np.percentile(image, (0.5, 99.5))
        np.testing.assert_array_equal(grey, np.maximum(scale(image, low, high), 1))
        assert len(np.unique(grey)) > 50


def test_a_background_of_zeros_stays_one():
    """As nnU-Net normalises: z-scores inside of the body, 0 outside."""
    hu = body()
    is_body = hu > -500
    scores = np.where(is_body, (hu - hu[is_body].mean()) / hu[is_body].std(), 0.0)
    grey, (notice,) = to_grey(scores, None)
    assert "below 0" in notice
    np.testing.assert_array_equal(grey == 0, ~is_body)


def test_other_images_are_scaled_as_the_challenge_scales_them():
    image = body() + 1100
    grey, notices = to_grey(image, None)
    np.testing.assert_array_equal(grey, scale_percentiles(image))
    assert notices == []
    grey, (notice,) = to_grey(body(), None)
    assert "looks like CT in HU" in notice
    with pytest.raises(ValueError, match="expected voxels that differ"):
        to_grey(np.full((4, 5, 6), -3.0), None)
    with pytest.raises(ValueError, match="expected voxels that differ"):
        to_grey(np.full((4, 5, 6), 7), None)
