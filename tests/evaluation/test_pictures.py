"""Curves with names as people write them."""

import warnings

import numpy as np

from utils.evaluation.protocol import ROUNDS
from utils.evaluation.report.pictures import draw_curves, draw_seconds

NAMES = ("MR_肝臓", "CT_كبد", "US_🙂 50% %s", "PET_$x$ & <b>")


def test_names_in_any_script_are_quiet_and_readable():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves = draw_curves({name: np.full((2, ROUNDS), 0.5) for name in NAMES}, "DSC")
        seconds = draw_seconds({name: np.array([1.0, 2.0]) for name in NAMES}, 90)
    for svg in (curves, seconds):
        for name in NAMES[:3]:
            assert name in svg
        assert "PET_$x$ &amp; &lt;b&gt;" in svg and "<b>" not in svg
