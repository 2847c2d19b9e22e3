"""Where the network is least sure, and what it says of its own mistakes."""

import numpy as np
import pytest

from segment_anything import SamPredictor3D
from segment_anything.bounds import AdaptiveSettings
from segment_anything.patches import PROBABLY_WRONG, Prediction, nothing
from segment_anything.suggestion import suggest_click

SHAPE = (20, 200, 150)


def prediction(unsure, start=(3, 10, 20), sides=(12, 90, 140), iou=0.9) -> Prediction:
    logits = np.full(sides, 5, np.float16)
    for part in unsure:
        logits[part] = -0.5
    region = tuple(slice(a, a + n) for a, n in zip(start, sides, strict=True))
    return Prediction(SHAPE, region, logits, iou)


def test_it_is_in_the_middle_of_the_thickest_doubt():
    found = prediction([np.s_[2:9, 10:31, 60:85], np.s_[10:11, :, :]])
    z, y, x = suggest_click(found)
    assert z == 3 + 5 and 10 + 13 <= y < 10 + 28 and 20 + 63 <= x < 20 + 82
    assert suggest_click(prediction([])) is None and suggest_click(nothing(SHAPE)) is None


def test_the_last_prediction_of_an_object_is_looked_at(tiny_hybrid):
    predictor = SamPredictor3D(tiny_hybrid)
    predictor.set_image(np.random.default_rng(0).integers(0, 255, (9, 14, 18), np.uint8))
    with pytest.raises(ValueError, match="object 2: nothing to suggest"):
        predictor.suggest_click(2)
    found = predictor.predict(box=(2, 3, 4, 8, 11, 14), obj=2)
    assert predictor.suggest_click(2) == suggest_click(found)


def test_estimates_of_the_iou_follow_the_line_of_their_weights(tiny_hybrid):
    image = np.random.default_rng(0).integers(0, 255, (9, 14, 18), np.uint8)
    ious = []
    for slope in (0.02, 0.01):  # random weights estimate whatever
        settings = AdaptiveSettings(iou_slope=slope, iou_intercept=0.5)
        predictor = SamPredictor3D(tiny_hybrid, settings)
        predictor.set_image(image)
        ious.append(predictor.predict(box=(2, 3, 4, 8, 11, 14)).iou)
    assert ious[0] != 0.5 and ious[0] - 0.5 == pytest.approx(2 * (ious[1] - 0.5))
    assert AdaptiveSettings(iou_slope=3.0).true_iou(0.5) == 1.0
    with pytest.raises(ValueError, match="expected iou_slope as a number from -10 to 10"):
        AdaptiveSettings(iou_slope="1")


def test_what_is_found_may_be_doubtful():
    assert prediction([], iou=PROBABLY_WRONG - 0.1).is_doubtful
    assert not prediction([], iou=PROBABLY_WRONG).is_doubtful
    assert not nothing(SHAPE).is_doubtful
