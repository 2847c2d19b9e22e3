"""SAM-Med3D: `sam_model_registry3D` builds a network, `SamPredictor3D` uses it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segment_anything.build_sam3D import sam_model_registry3D
    from segment_anything.modeling.sam3D import Sam3D
    from segment_anything.predictor3D import SamPredictor3D

__version__ = "1.0.0"  # the one place

__all__ = ["Sam3D", "SamPredictor3D", "sam_model_registry3D"]

_MODULES = {
    "Sam3D": "modeling.sam3D",
    "SamPredictor3D": "predictor3D",
    "sam_model_registry3D": "build_sam3D",
}


def __getattr__(name: str) -> Any:
    """Import on first use: who reads cases needs `segment_anything.prompts`, and no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
