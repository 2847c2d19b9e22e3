"""The PyPI package medim: our network under its name, and its own network under our interface."""

from pathlib import Path

from segment_anything import Sam3D, sam_model_registry3D
from utils.inference.checkpoint import (
    BOX_EMBEDDINGS,
    Checkpoint,
    CheckpointError,
    build_empty,
    build_model,
    check_tensors,
    read_checkpoint,
)

MEDIM_NAME = "SAM-Med3D"


def register_medim() -> None:
    """Make `medim.create_model("SAM-Med3D", ...)` return this repository's network.

    medim's own has 2 point embeddings and can't take boxes; this one has 4. With
    `pretrained=True, checkpoint_path=FILE` it loads any checkpoint that `read_checkpoint` reads.
    """
    from medim.models._registry import register_model

    def create(pretrained: bool = False, checkpoint_path: str = "", **model_args) -> Sam3D:
        if pretrained:
            if model_args:
                raise ValueError(f"a checkpoint sets the sizes itself, got {sorted(model_args)}")
            return build_model(read_checkpoint(Path(checkpoint_path)))
        return sam_model_registry3D["default"](**model_args)

    register_model(MEDIM_NAME)(create)


def build_medim_model(checkpoint: Checkpoint) -> Sam3D:
    """The weights of a checkpoint in medim's own, independent network, in eval mode.

    It has no embeddings for the corners of a box, so those of the checkpoint are left out.

    Raises:
        CheckpointError: Network and weights do not fit.
    """
    from medim.models.sam_med3d import build_sam3D_vit_b_ori

    if checkpoint.model_args or checkpoint.model_type != "vit_b_ori":
        raise CheckpointError(f"{checkpoint.path.name}: medim builds the published network only")
    network = build_empty(build_sam3D_vit_b_ori)
    weights = {k: v for k, v in checkpoint.state_dict.items() if k not in BOX_EMBEDDINGS}
    check_tensors(checkpoint.path.name, network.state_dict(), weights)
    network.load_state_dict(weights, assign=True)
    return Sam3D(network.image_encoder, network.prompt_encoder, network.mask_decoder).eval()
