"""The whole network: image encoder, prompt encoder, mask decoder."""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from segment_anything.modeling.hybrid3D import (
    DensePromptEncoder3D,
    HybridImageEncoder3D,
    HybridMaskDecoder3D,
)
from segment_anything.modeling.image_encoder3D import ImageEncoderViT3D
from segment_anything.modeling.mask_decoder3D import MaskDecoder3D
from segment_anything.modeling.prompt_encoder3D import PromptEncoder3D

MASK_THRESHOLD = 0.0  # logits above it are foreground; sigmoid(0) = 0.5

# What the image encoder makes of a batch of ROIs; its shape is between it and the mask decoder.
Embedding = Tensor | tuple[Tensor, ...]


def split_embedding(embedding: Embedding) -> list[Embedding]:
    """An embedding of B ROIs -> B of one, none of which keeps the others in memory."""
    if isinstance(embedding, Tensor):
        return [part.clone() for part in embedding.split(1)]
    levels = ([part.clone() for part in level.split(1)] for level in embedding)
    return list(zip(*levels, strict=True))


def join_embeddings(embeddings: Sequence[Embedding]) -> Embedding:
    """The inverse of split_embedding."""
    if isinstance(embeddings[0], Tensor):
        return torch.cat([e for e in embeddings if isinstance(e, Tensor)])
    return tuple(torch.cat(levels) for levels in zip(*embeddings, strict=True))


class Upscale(torch.autograd.Function):
    """Trilinear interpolation of (B, 1, s, s, s) to (B, 1, S, S, S).

    The gradient is what F.interpolate computes, as products with the interpolation's matrix of
    each axis: 10 times as fast on a CPU, and without the atomic sums that make it differ from run
    to run on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        ctx.sizes = x.shape[-1], size
        return F.interpolate(x, size=(size,) * 3, mode="trilinear")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        small, size = ctx.sizes
        identity = torch.eye(small, dtype=gradient.dtype, device=gradient.device)
        weights = F.interpolate(identity[None], size=size, mode="linear")[0]  # (s, S)
        # (B, 1, S, S, S) -> x, y, then z become s; einsum takes a way that is several times slower.
        planes = weights @ (gradient @ weights.T)
        return (weights @ planes.flatten(3)).unflatten(3, (small, small)), None


class Sam3D(nn.Module):
    """SAM-Med3D. Encode a ROI once, then decode any number of prompts on it.

    Args:
        image_encoder, prompt_encoder, mask_decoder: The parts of one variant.
        voxels_per_token: Voxels of the mask in a token, along an axis.
    """

    def __init__(
        self,
        image_encoder: ImageEncoderViT3D | HybridImageEncoder3D,
        prompt_encoder: PromptEncoder3D | DensePromptEncoder3D,
        mask_decoder: MaskDecoder3D | HybridMaskDecoder3D,
        voxels_per_token: int = 4,
    ) -> None:
        super().__init__()
        self.voxels_per_token = voxels_per_token
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    @property
    def img_size(self) -> int:
        """Voxels along the side of the ROI."""
        return self.image_encoder.img_size

    @property
    def mask_size(self) -> int:
        """M, voxels along the side of `low_res_mask` and of a mask prompt."""
        return self.voxels_per_token * self.image_encoder.pos_embed.shape[1]

    @property
    def draws_prompts(self) -> bool:
        """True if it sees prompts as volumes, and so can be trained to take drawings."""
        return isinstance(self.prompt_encoder, DensePromptEncoder3D)

    @property
    def device(self) -> torch.device:
        return self.image_encoder.pos_embed.device

    def encode(self, image: Tensor) -> Embedding:
        """(B, 1, S, S, S) normalised ROIs -> image embeddings; of the ViT (B, C, G, G, G)."""
        return self.image_encoder(image)

    def decode(
        self,
        embedding: Embedding,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        mask_prompt: Tensor | None = None,
        drawings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Prompts on embedded ROIs -> low_res_mask (B, 1, M, M, M), logits, and IoU (B, 1).

        The prompts are those of `PromptEncoder3D.forward`; a network that `draws_prompts` takes
        those of `DensePromptEncoder3D.forward`.
        """
        if drawings is None:
            sparse, dense = self.prompt_encoder(points, boxes, mask_prompt)
        else:
            assert isinstance(self.prompt_encoder, DensePromptEncoder3D)
            sparse, dense = self.prompt_encoder(points, boxes, mask_prompt, drawings)
        image_pe = self.prompt_encoder.get_dense_pe()
        return self.mask_decoder(embedding, image_pe, sparse, dense)

    def upscale(self, low_res_mask: Tensor) -> Tensor:
        """(B, 1, M, M, M) logits -> float32 logits at ROI size (B, 1, S, S, S)."""
        if self.mask_size == self.img_size:
            return low_res_mask.float()
        return cast(Tensor, Upscale.apply(low_res_mask.float(), self.img_size))
