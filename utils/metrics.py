"""The challenge's metrics: DSC, NSD at 2 mm, and their areas under the curve of clicks."""

import numpy as np

NSD_TOLERANCE_MM = 2.0
NSD_MIN_DSC = 0.2  # the official evaluator reports an NSD of 0 at or below this DSC
AUC_ROUNDS = 5  # the click rounds; a first round with boxes is left out


def dsc(truth: np.ndarray, pred: np.ndarray) -> float:
    """Dice similarity coefficient in [0, 1] of two bool masks; NaN if both are empty."""
    size = int(np.count_nonzero(truth)) + int(np.count_nonzero(pred))
    return 2 * int(np.count_nonzero(truth & pred)) / size if size else float("nan")


def nsd(
    truth: np.ndarray,
    pred: np.ndarray,
    spacing: tuple[float, float, float],
    tolerance_mm: float = NSD_TOLERANCE_MM,
) -> float:
    """Normalised surface distance in [0, 1] of two (D, H, W) bool masks, neither of them empty.

    Surfaces are sub-voxel, as in DeepMind's surface-distance, which the official evaluator uses.

    Args:
        truth: A region that holds the whole object and the whole prediction; what lies outside
            of it counts as background.
        pred: The same region.
        spacing: In mm, in the order of the axes.
        tolerance_mm: Surface within it of the other surface agrees.
    """
    import torch
    from monai.metrics.surface_dice import compute_surface_dice

    # The surface of what touches the border of the region lies half outside of it.
    y_pred, y = (torch.from_numpy(np.pad(mask, 1))[None, None] for mask in (pred, truth))
    value = compute_surface_dice(
        y_pred,
        y,
        class_thresholds=[tolerance_mm],
        include_background=True,  # the only channel is the object
        spacing=[float(s) for s in spacing],
        use_subvoxels=True,
    )
    return float(value)


def auc(rounds: np.ndarray) -> float:
    """Trapezoid over the last AUC_ROUNDS values, a step apart: at the most AUC_ROUNDS - 1."""
    return float(np.trapezoid(rounds[-AUC_ROUNDS:]))
