from segment_anything.build_sam3D import sam_model_registry3D
from segment_anything.modeling.sam3D import Sam3D
from segment_anything.predictor3D import SamPredictor3D

__all__ = ["Sam3D", "SamPredictor3D", "sam_model_registry3D"]
