"""The registry of network variants."""

from collections.abc import Callable
from typing import Any

from segment_anything.modeling.hybrid3D import (
    DensePromptEncoder3D,
    HybridImageEncoder3D,
    HybridMaskDecoder3D,
)
from segment_anything.modeling.image_encoder3D import ImageEncoderViT3D
from segment_anything.modeling.mask_decoder3D import MaskDecoder3D
from segment_anything.modeling.prompt_encoder3D import PromptEncoder3D
from segment_anything.modeling.sam3D import Sam3D


def build_sam3D_vit_b_ori(
    img_size: int = 128,
    patch_size: int = 16,
    embed_dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    window_size: int = 14,
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11),
    prompt_embed_dim: int = 384,
    decoder_depth: int = 2,
    decoder_num_heads: int = 8,
    decoder_mlp_dim: int = 2048,
) -> Sam3D:
    """The published network; any other size of it by keyword.

    Raises:
        ValueError: The sizes do not fit together.
    """
    fits = {
        f"img_size {img_size} is a multiple of patch_size {patch_size}": img_size % patch_size == 0,
        f"num_heads {num_heads} divides embed_dim {embed_dim}": embed_dim % num_heads == 0,
        f"3, 8 and 2 x decoder_num_heads {decoder_num_heads} divide prompt_embed_dim "
        f"{prompt_embed_dim}": all(
            prompt_embed_dim % n == 0 for n in (3, 8, 2 * decoder_num_heads)
        ),
    }
    if broken := [rule for rule, holds in fits.items() if not holds]:
        raise ValueError(f"sizes must satisfy: {'; '.join(broken)}")
    return Sam3D(
        ImageEncoderViT3D(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            out_chans=prompt_embed_dim,
            window_size=window_size,
            global_attn_indexes=tuple(global_attn_indexes),
        ),
        PromptEncoder3D(prompt_embed_dim, img_size, grid=img_size // patch_size),
        MaskDecoder3D(
            prompt_embed_dim,
            depth=decoder_depth,
            num_heads=decoder_num_heads,
            mlp_dim=decoder_mlp_dim,
        ),
    )


def build_sam3D_vit_s_ori(**sizes: Any) -> Sam3D:
    """The published architecture at 5.7 million parameters, on 64³ ROIs: trains on a CPU."""
    small: dict[str, Any] = dict(
        img_size=64,
        patch_size=8,
        embed_dim=192,
        depth=6,
        num_heads=6,
        global_attn_indexes=(1, 3, 5),
        prompt_embed_dim=192,
        decoder_mlp_dim=768,
    )
    return build_sam3D_vit_b_ori(**small | sizes)


def build_sam3D_hybrid_s(
    img_size: int = 64,
    dims: tuple[int, int, int] = (32, 96, 192),
    encoder_depth: int = 4,
    decoder_depth: int = 2,
    num_heads: int = 6,
) -> Sam3D:
    """A network of 4 million parameters with dense prompts, for CPUs.

    Raises:
        ValueError: The sizes do not fit together.
    """
    if img_size % 8 or dims[-1] % num_heads:
        raise ValueError(
            f"sizes must satisfy: img_size {img_size} is a multiple of 8, num_heads {num_heads} "
            f"divides {dims[-1]}"
        )
    channels = (dims[0], dims[1], dims[2])
    return Sam3D(
        HybridImageEncoder3D(img_size, channels, encoder_depth, num_heads),
        DensePromptEncoder3D(dims[-1], img_size, grid=img_size // 8),
        HybridMaskDecoder3D(channels, decoder_depth, num_heads),
        voxels_per_token=8,
    )


sam_model_registry3D: dict[str, Callable[..., Sam3D]] = {
    "default": build_sam3D_vit_b_ori,
    "vit_b_ori": build_sam3D_vit_b_ori,
    "vit_s_ori": build_sam3D_vit_s_ori,
    "hybrid_s": build_sam3D_hybrid_s,
}
