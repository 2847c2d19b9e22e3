"""A small network for CPUs: convolutions down to 8^3 tokens, a transformer there, and back up.

Its parts have the interfaces of those of the ViT. Three things differ. The image embedding is a
pyramid, so that the decoder sees edges and not only tokens. The prompts are drawn into volumes,
which every level of the decoder sees: as tokens they were hardly listened to by networks of this
size. And the mask is as fine as the ROI; the finest features are half as fine, and each predicts
the 2^3 voxels of the mask in it.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from segment_anything.modeling.common import LayerNorm3d, MLPBlock
from segment_anything.modeling.mask_decoder3D import MLP, TokenAttention
from segment_anything.modeling.prompt_encoder3D import box_corners

Pyramid = tuple[Tensor, Tensor, Tensor]

CLICK_SIGMA = 1.0  # of the Gaussian drawn for a click, in voxels of the drawn volumes
CLICK_REACH = 4.0  # sigmas, beyond which it is 0: floats below 1e-38 slow a CPU down tenfold
# Foreground clicks and scribbles, the same of the background, box, mask; regions that belong to the
# object, and that do not. Without drawings the first four are enough.
PROMPT_CHANNELS = 6
DRAWING_CHANNELS = 4  # foreground scribbles, background ones, regions in the object, outside of it


class ResidualBlock3D(nn.Module):
    """Two 3^3 convolutions behind norm and activation, residual; (B, C, D, H, W) as before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            conv = nn.Conv3d(channels, channels, kernel_size=3, padding=1)
            layers += [LayerNorm3d(channels), nn.GELU(), conv]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Doubling3D(nn.Module):
    """(B, C, D, H, W) -> (B, C', 2 D, 2 H, 2 W): a linear map of each voxel to the 2^3 in it.

    That is a transposed convolution with kernel and stride 2, initialised as such, but several
    times as fast on CPUs, and channels last.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, 2**3 * out_channels)
        bound = (2**3 * out_channels) ** -0.5  # torch's fan-in of a transposed convolution
        nn.init.uniform_(self.linear.weight, -bound, bound)
        nn.init.uniform_(self.linear.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle3d(self.linear(x.movedim(1, -1)).movedim(-1, 1))


def channels_last(x: Tensor) -> Tensor:
    """The layout that convolutions are fastest in, on CPUs and GPUs.

    Convolutions of few channels leave it on CPUs, and then what follows mixes layouts.
    """
    return x.contiguous(memory_format=torch.channels_last_3d)


def pixel_shuffle3d(x: Tensor) -> Tensor:
    """(B, 8 C, D, H, W) -> (B, C, 2 D, 2 H, 2 W): the channels are the voxels of each voxel."""
    parts = x.movedim(1, -1).unflatten(-1, (2, 2, 2, -1))
    doubled = parts.permute(0, 1, 4, 2, 5, 3, 6, 7)
    return doubled.flatten(5, 6).flatten(3, 4).flatten(1, 2).movedim(-1, 1)


class TransformerBlock(nn.Module):
    """Transformer block on (B, N, C) tokens that all see each other."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = TokenAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y)
        return x + self.mlp(self.norm2(x))


def attend(blocks: nn.Module, x: Tensor) -> Tensor:
    """Apply transformer blocks to the voxels of (B, C, D, H, W) as tokens."""
    tokens = blocks(x.flatten(2).transpose(1, 2))
    return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class HybridImageEncoder3D(nn.Module):
    """(B, 1, S, S, S) volumes -> features at S / 2, S / 4 and S / 8.

    Args:
        img_size: S, a multiple of 8.
        dims: Channels of the three levels.
        depth: Transformer blocks at the last one.
        num_heads: They divide its channels.
    """

    def __init__(
        self, img_size: int, dims: tuple[int, int, int], depth: int, num_heads: int
    ) -> None:
        super().__init__()
        self.img_size = img_size
        fine, middle, coarse = dims
        grid = img_size // 8
        self.stem = nn.Sequential(
            nn.Conv3d(1, fine, kernel_size=3, stride=2, padding=1), ResidualBlock3D(fine)
        )
        self.middle = nn.Sequential(
            nn.Conv3d(fine, middle, kernel_size=2, stride=2), ResidualBlock3D(middle)
        )
        self.coarse = nn.Conv3d(middle, coarse, kernel_size=2, stride=2)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, grid, coarse))
        self.blocks = nn.Sequential(*(TransformerBlock(coarse, num_heads) for _ in range(depth)))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Pyramid:
        embed, block = self.stem
        fine = block(channels_last(embed(x)))
        middle = self.middle(fine)
        coarse = self.coarse(middle) + self.pos_embed.movedim(-1, 1)
        return fine, middle, attend(self.blocks, coarse)


class DensePromptEncoder3D(nn.Module):
    """Draws prompts, all in voxels of the ROI, into volumes half as fine.

    It learns one thing: a position code for the decoder's tokens.

    Args:
        embed_dim: Channels of the decoder's tokens.
        img_size: S, voxels along the side of the ROI.
        grid: Tokens along it.
    """

    def __init__(self, embed_dim: int, img_size: int, grid: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.size = img_size // 2
        self.pe = nn.Parameter(torch.zeros(1, embed_dim, grid, grid, grid))
        nn.init.trunc_normal_(self.pe, std=0.02)

    def get_dense_pe(self) -> Tensor:
        """(1, embed_dim, grid, grid, grid)"""
        return self.pe

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        drawings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw any of the kinds of prompts that PromptEncoder3D takes, and drawings.

        Args:
            points, boxes, masks: As those of PromptEncoder3D.
            drawings: (B, DRAWING_CHANNELS, S/2, S/2, S/2) of 0 and 1.

        Returns:
            No sparse embeddings, (B, 0, 1), and (B, C, S/2, S/2, S/2) with C = PROMPT_CHANNELS, or
            4 without drawings.
        """
        device = self.pe.device
        kinds = [box_corners(boxes)] if boxes is not None else []
        kinds += [points] if points is not None else []
        volumes = masks if masks is not None else drawings
        batch = len(kinds[0][0]) if kinds else len(volumes) if volumes is not None else 1
        coords, labels = torch.zeros(batch, 0, 3), torch.zeros(batch, 0, dtype=torch.int64)
        if kinds:
            coords = torch.cat([coords for coords, _ in kinds], dim=1)
            labels = torch.cat([labels for _, labels in kinds], dim=1)
        # Centres of the drawn voxels lie at 0, 1, ...
        coords = (coords.float().to(device) + 0.5) / 2 - 0.5
        labels = labels.to(device)
        foreground, background = (self._clicks(coords, labels == kind) for kind in (1, 0))
        if masks is None:
            mask = torch.zeros_like(foreground)
        else:
            mask = F.avg_pool3d(masks[:, 0].float(), kernel_size=2)
        drawn = [foreground, background, self._box(coords, labels), mask]
        if drawings is not None:
            scribbles, regions = drawings.float().split(2, dim=1)
            drawn[0], drawn[1] = (
                torch.maximum(clicks, scribble)
                for clicks, scribble in zip(drawn[:2], scribbles.unbind(1), strict=True)
            )
            drawn += regions.unbind(1)
        return coords.new_zeros(batch, 0, 1), torch.stack(drawn, dim=1)

    def _clicks(self, coords: Tensor, is_drawn: Tensor) -> Tensor:
        """(B, N, 3) and which -> (B, S/2, S/2, S/2), the highest of the Gaussians round them."""
        voxels = torch.arange(self.size, device=coords.device)
        distances = (coords[..., None] - voxels) / CLICK_SIGMA  # (B, N, 3, S/2)
        is_near = (distances.abs() <= CLICK_REACH) & is_drawn[..., None, None]
        z, y, x = torch.exp(-0.5 * distances**2).mul(is_near).unbind(2)
        drawn = z[..., :, None, None] * y[..., None, :, None] * x[..., None, None, :]
        empty = drawn.new_zeros(len(drawn), 1, *drawn.shape[2:])
        return torch.cat([drawn, empty], dim=1).amax(dim=1)

    def _box(self, coords: Tensor, labels: Tensor) -> Tensor:
        """The share of each voxel that lies in the box -> (B, S/2, S/2, S/2); 0 without one."""
        voxels = torch.arange(self.size, device=coords.device)
        half = 0.25  # from a corner voxel's centre to its edge
        lower, upper = (
            (coords * (labels == kind)[..., None]).sum(dim=1)[..., None] for kind in (2, 3)
        )
        low = torch.maximum(voxels - 0.5, lower - half)
        high = torch.minimum(voxels + 0.5, upper + half)
        z, y, x = (high - low).clamp(min=0).unbind(1)
        has_box = (labels == 2).any(dim=1).float()[:, None, None, None]
        return has_box * z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]


class HybridMaskDecoder3D(nn.Module):
    """Image pyramid and drawn prompts -> mask logits and their predicted IoU.

    Args:
        dims: Channels of the image encoder's levels.
        depth: Transformer blocks in which prompts and image meet.
        num_heads: They divide the channels of the last level.
    """

    def __init__(self, dims: tuple[int, int, int], depth: int, num_heads: int) -> None:
        super().__init__()
        fine, middle, coarse = dims
        # With kernels of 1^3 in place of 3^3 clicks were hardly listened to.
        self.prompt_fine = nn.Conv3d(PROMPT_CHANNELS, fine, kernel_size=3, padding=1)
        self.prompt_middle = nn.Conv3d(fine, middle, kernel_size=2, stride=2)
        self.prompt_coarse = nn.Conv3d(middle, coarse, kernel_size=2, stride=2)
        self.blocks = nn.Sequential(*(TransformerBlock(coarse, num_heads) for _ in range(depth)))
        self.up_middle = Doubling3D(coarse, middle)
        self.middle = ResidualBlock3D(middle)
        self.up_fine = Doubling3D(middle, fine)
        self.fine = ResidualBlock3D(fine)
        self.mask_head = nn.Sequential(
            LayerNorm3d(fine), nn.GELU(), nn.Conv3d(fine, 2**3, kernel_size=1)
        )
        self.iou_prediction_head = MLP(coarse, coarse, 1, 2)

    def forward(
        self,
        image_embeddings: Pyramid,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode masks for B prompts.

        Args:
            image_embeddings: As the encoder returns them; one image may serve all prompts.
            image_pe: (1, C, G, G, G)
            sparse_prompt_embeddings: Empty.
            dense_prompt_embeddings: (B, C, 4 G, 4 G, 4 G), the first C of PROMPT_CHANNELS.

        Returns:
            Logits (B, 1, 8 G, 8 G, 8 G) and predicted IoU (B, 1).
        """
        fine, middle, coarse = image_embeddings
        weight = self.prompt_fine.weight[:, : dense_prompt_embeddings.shape[1]]
        drawn = F.conv3d(dense_prompt_embeddings, weight, self.prompt_fine.bias, padding=1)
        prompt_fine = channels_last(drawn)
        prompt_middle = self.prompt_middle(F.gelu(prompt_fine))
        prompt_coarse = self.prompt_coarse(F.gelu(prompt_middle))
        x = attend(self.blocks, coarse + prompt_coarse + image_pe)
        iou = self.iou_prediction_head(x.mean(dim=(2, 3, 4)))
        x = self.middle(middle + prompt_middle + self.up_middle(x))
        x = self.fine(fine + prompt_fine + self.up_fine(x))
        return pixel_shuffle3d(self.mask_head(x)), iou
