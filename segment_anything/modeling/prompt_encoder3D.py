"""Points, boxes and masks -> embeddings for the mask decoder."""

import math

import torch
import torch.nn as nn
from torch import Tensor

from segment_anything.modeling.common import LayerNorm3d


class PositionEmbeddingRandom3D(nn.Module):
    """Positions as the sines and cosines of random projections."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_feats: int) -> None:
        super().__init__()
        matrix = nn.init.normal_(torch.empty(3, num_feats))
        self.register_buffer("positional_encoding_gaussian_matrix", matrix)

    def encode(self, coords: Tensor) -> Tensor:
        """(..., 3) positions in [0, 1] -> (..., 3 * num_feats).

        [sin, cos, sin]: the sine stands twice, so that the width is a multiple of three; the
        published weights were trained so.
        """
        # A phase of hundreds of radians does not survive bf16.
        with torch.autocast(coords.device.type, enabled=False):
            matrix = self.positional_encoding_gaussian_matrix.float()
            phase = 2 * math.pi * ((2 * coords.float() - 1) @ matrix)
            return torch.cat([phase.sin(), phase.cos(), phase.sin()], dim=-1)

    def forward(self, grid: int) -> Tensor:
        """(3 * num_feats, grid, grid, grid) encoding of the token centres.

        The first two axes are swapped relative to the coordinates of points: the published
        weights were trained so.
        """
        device = self.positional_encoding_gaussian_matrix.device
        centres = (torch.arange(grid, device=device) + 0.5) / grid
        d, h, w = torch.meshgrid(centres, centres, centres, indexing="ij")
        return self.encode(torch.stack([h, d, w], dim=-1)).movedim(-1, 0)


def box_corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 6) boxes as points: (B, 2, 3) and their labels 2 and 3, (B, 2)."""
    corners = boxes.reshape(-1, 2, 3)
    return corners, torch.tensor([2, 3], device=boxes.device).expand(len(corners), -1)


class PromptEncoder3D(nn.Module):
    """Encodes prompts, all in voxels of the ROI.

    Args:
        embed_dim: Channels of the embeddings; a multiple of three.
        img_size: Voxels along the side of the ROI.
        grid: Tokens along the side of the image embedding.
        mask_in_chans: Channels inside the mask encoder.
    """

    def __init__(self, embed_dim: int, img_size: int, grid: int, mask_in_chans: int = 16) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.img_size = img_size
        self.grid = grid
        self.pe_layer = PositionEmbeddingRandom3D(embed_dim // 3)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, mask_in_chans // 4, kernel_size=2, stride=2),
            LayerNorm3d(mask_in_chans // 4),
            nn.GELU(),
            nn.Conv3d(mask_in_chans // 4, mask_in_chans, kernel_size=2, stride=2),
            LayerNorm3d(mask_in_chans),
            nn.GELU(),
            nn.Conv3d(mask_in_chans, embed_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def get_dense_pe(self) -> Tensor:
        """(1, embed_dim, grid, grid, grid) positional encoding of the image embedding."""
        return self.pe_layer(self.grid)[None]

    def kind(self, i: int) -> Tensor:
        """(1, embed_dim): background, foreground, lower corner, upper corner."""
        return self.get_parameter(f"point_embeddings.{i}.weight")

    def embed_positions(self, points: Tensor) -> Tensor:
        """(B, N, 3) voxel indices (z, y, x) -> (B, N, embed_dim), of the voxels' centres."""
        return self.pe_layer.encode((points + 0.5) / self.img_size)

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """(B, N, 3) and (B, N), labels as in `forward` -> (B, N, embed_dim)."""
        position = self.embed_positions(points)
        kinds = torch.cat([self.kind(i) for i in range(4)])
        padding = self.not_a_point_embed.weight.expand_as(position)
        is_padding = labels[..., None] == -1
        return torch.where(is_padding, padding, position + kinds[labels.clamp(min=0)])

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed any of three kinds of prompts; those given agree in B.

        Args:
            points: Voxel indices (B, N, 3) in (z, y, x) and labels (B, N): 1 foreground,
                0 background, -1 padding; 2 and 3 are the lower and upper corner of a box, for
                batches in which not all have one.
            boxes: (B, 6), corners (z, y, x, z, y, x).
            masks: (B, 1, M, M, M) with M = 4 * `grid`: the logits of an earlier prediction, or
                a 0/1 mask.

        Returns:
            Sparse (B, K, embed_dim) and dense (B, embed_dim, grid, grid, grid) embeddings, with
            K = N + 1 for points alone (a padding point is added), N + 2 with a box.
        """
        sparse = []
        if points is not None:
            coords, labels = points
            if boxes is None:
                coords = torch.cat([coords, coords.new_zeros(len(coords), 1, 3)], dim=1)
                labels = torch.cat([labels, labels.new_full((len(labels), 1), -1)], dim=1)
            sparse.append(self.embed_points(coords, labels))
        if boxes is not None:
            sparse.append(self.embed_points(*box_corners(boxes)))

        batch = len(sparse[0]) if sparse else len(masks) if masks is not None else 1
        weight = self.no_mask_embed.weight
        if not sparse:
            sparse.append(weight.new_zeros(batch, 0, self.embed_dim))
        if masks is not None:
            dense = self.mask_downscaling(masks)
        else:
            dense = weight.reshape(1, -1, 1, 1, 1).expand(batch, -1, *[self.grid] * 3)
        return torch.cat(sparse, dim=1), dense
