"""The ViT image encoder, with its window padding folded into a single key.

The published network zero-pads the 8^3 token grid to 14^3 in its window blocks and attends to the
padding, so the weights depend on it. Computed as written that is a 2744 x 2744 attention for 512
tokens. All padded keys of a head are the same vector (the bias of `qkv`), so here they are one
virtual key whose logit carries the log of their summed weights: the same result, 513 keys.
"""

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from segment_anything.modeling.common import LayerNorm3d, MLPBlock


class PatchEmbed3D(nn.Module):
    """(B, C, D, H, W) image -> (B, d, h, w, dim) tokens of non-overlapping patches."""

    def __init__(self, patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).movedim(1, -1)


def relative_table(table: Tensor, side: int, queries: int) -> Tensor:
    """(2 * side - 1, C) table -> (queries, side, C), entry [i, j] at distance i - j."""
    i = torch.arange(queries, device=table.device)
    j = torch.arange(side, device=table.device)
    return table[i[:, None] - j + side - 1]


class Attention(nn.Module):
    """Multi-head attention in a cubic window, with decomposed relative positions.

    Args:
        dim: Channels.
        num_heads: Heads; they divide `dim`.
        side: Tokens along one side of the window, padding included.

    Attributes:
        save_memory: Compute the weights of the attention anew in the backward pass, which are
            most of what a block keeps and little of what it computes.
    """

    rel_pos_d: nn.Parameter
    rel_pos_h: nn.Parameter
    rel_pos_w: nn.Parameter

    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.side = side
        self.save_memory = False
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        for table in ("rel_pos_d", "rel_pos_h", "rel_pos_w"):
            setattr(self, table, nn.Parameter(torch.zeros(2 * side - 1, dim // num_heads)))

    def forward(self, x: Tensor) -> Tensor:
        """Attend among the real tokens of a window and, where it is not full, its zero padding.

        Args:
            x: (B, D, H, W, C), the real tokens, in the low corner of the window; no side is
                longer than `side`.

        Returns:
            (B, D, H, W, C)
        """
        batch, *grid, dim = x.shape
        qkv = self.qkv(x).reshape(batch, -1, 3, self.num_heads, dim // self.num_heads)
        if self.save_memory and torch.is_grad_enabled():
            x = checkpoint(self._attend, qkv, grid, use_reentrant=False, preserve_rng_state=False)
        else:
            x = self._attend(qkv, grid)
        return self.proj(x.transpose(1, 2).reshape(batch, *grid, dim))

    def _attend(self, qkv: Tensor, grid: list[int]) -> Tensor:
        """(B, D * H * W, 3, heads, C / heads) -> (B, heads, D * H * W, C / heads)"""
        batch = len(qkv)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, D * H * W, C / heads)
        b_q, b_k, b_v = self.qkv.bias.to(q.dtype).reshape(3, 1, self.num_heads, 1, -1)

        with torch.autocast(q.device.type, enabled=False):  # log-sum-exps stay in float32
            bias = self.position_bias(q.float().unflatten(2, grid), b_q.float())
        if bias.shape[-1] > k.shape[-2]:
            k = torch.cat([k, b_k.expand(batch, -1, -1, -1)], dim=2)
            v = torch.cat([v, b_v.expand(batch, -1, -1, -1)], dim=2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))

    def position_bias(self, q: Tensor, b_q: Tensor) -> Tensor:
        """What is added to the logits of query (a, b, c) for key (d, h, w):

            q[a,b,c].R_d[a,w] + q[a,b,d].R_h[b,w] + q[a,b,h].R_w[h,w]

        This is not q.R_d[a,d] + q.R_h[b,h] + q.R_w[c,w], the usual form: the published weights
        were trained with the axes mixed up so. It couples the keys' axes only through w, which is
        what lets the sum over the padded keys factor into log-sum-exps over single axes.

        Args:
            q: (B, heads, D, H, W, C) queries of the real tokens, float32.
            b_q: (1, heads, 1, C) query of a padded token.

        Returns:
            (B, heads, D * H * W, D * H * W), and a last column for the padding if there is any.
        """
        nd, nh, nw = q.shape[2:5]
        side = self.side
        r_d = relative_table(self.rel_pos_d.float(), side, nd)
        r_h = relative_table(self.rel_pos_h.float(), side, nh)
        r_w = relative_table(self.rel_pos_w.float(), side, side)
        # Queries by their third index, which the formula also runs over the keys' d and h.
        padding = b_q[:, :, None, None].expand(*q.shape[:4], side - nw, -1)
        q_all = torch.cat([q, padding], dim=4)
        by_w = torch.einsum("nuabcx,awx->nuabcw", q, r_d)  # A[a,b,c,w]
        by_dw = torch.einsum("nuabdx,bwx->nuabdw", q_all, r_h)  # B[a,b,d,w]
        by_hw = torch.einsum("nuabhx,hwx->nuabhw", q_all, r_w)  # C[a,b,h,w]

        real_dw, real_hw = by_dw[..., :nd, :nw], by_hw[..., :nh, :nw]
        grid = real_dw[..., :, None, :] + real_hw[..., None, :, :]  # (B, heads, a, b, d, h, w)
        bias = by_w[..., :nw][..., None, None, :] + grid[:, :, :, :, None]
        bias = bias.reshape(*q.shape[:2], nd * nh * nw, nd * nh * nw)

        # The padded keys as disjoint slabs: w beyond nw; else d beyond nd; else h beyond nh.
        terms = []
        if nw < side:
            slab = by_dw[..., nw:].logsumexp(-2) + by_hw[..., nw:].logsumexp(-2)
            terms.append(by_w[..., nw:] + slab[:, :, :, :, None])
        if nd < side:
            slab = by_dw[..., nd:, :nw].logsumexp(-2) + by_hw[..., :nw].logsumexp(-2)
            terms.append(by_w[..., :nw] + slab[:, :, :, :, None])
        if nh < side:
            slab = real_dw.logsumexp(-2) + by_hw[..., nh:, :nw].logsumexp(-2)
            terms.append(by_w[..., :nw] + slab[:, :, :, :, None])
        if not terms:
            return bias
        # Softmax takes no notice of what is added to a whole row, and this logit of up to log(2232)
        # would be rounded in bf16.
        padding_logit = torch.cat(terms, dim=-1).logsumexp(-1).flatten(2)[..., None]
        return torch.cat([bias - padding_logit, torch.zeros_like(padding_logit)], dim=-1)


def window_regions(grid: tuple[int, ...], side: int) -> Iterator[tuple[slice, ...]]:
    """Parts of a token grid that split into windows of equal size: whole ones, then the rests."""
    per_axis = []
    for n in grid:
        whole = n - n % side
        parts = [slice(0, whole), slice(whole, n)]
        per_axis.append([part for part in parts if part.start < part.stop])
    yield from product(*per_axis)


def attend_in_windows(attention: Attention, x: Tensor) -> Tensor:
    """Apply `attention` to each non-overlapping window of (B, D, H, W, C) tokens."""
    out = torch.empty_like(x)
    for d, h, w in window_regions(x.shape[1:4], attention.side):
        part = x[:, d, h, w]
        batch, *grid, dim = part.shape
        sides = [min(n, attention.side) for n in grid]
        counts = [n // side for n, side in zip(grid, sides, strict=True)]
        cells = [n for pair in zip(counts, sides, strict=True) for n in pair]
        windows = part.reshape(batch, *cells, dim).permute(0, 1, 3, 5, 2, 4, 6, 7)
        windows = attention(windows.reshape(-1, *sides, dim))
        windows = windows.reshape(batch, *counts, *sides, dim).permute(0, 1, 4, 2, 5, 3, 6, 7)
        out[:, d, h, w] = windows.reshape(part.shape)
    return out


class Block3D(nn.Module):
    """Transformer block: attention in windows of `side` tokens, then an MLP, both residual."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, side: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, side)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + attend_in_windows(self.attn, self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ImageEncoderViT3D(nn.Module):
    """A plain ViT on cubic volumes, with windowed and global attention blocks.

    Args:
        img_size: Voxels along each side of the input; a multiple of `patch_size`.
        patch_size: Voxels along each side of a patch.
        in_chans: Channels of the input.
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        num_heads: Attention heads; they divide `embed_dim`.
        mlp_ratio: Hidden channels of a block's MLP over `embed_dim`.
        out_chans: Channels of the output.
        window_size: Tokens along the side of a window.
        global_attn_indexes: Blocks that attend to the whole grid instead of windows.
    """

    def __init__(
        self,
        img_size: int = 128,
        patch_size: int = 16,
        in_chans: int = 1,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        out_chans: int = 384,
        window_size: int = 14,
        global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11),
    ) -> None:
        super().__init__()
        self.img_size = img_size
        grid = img_size // patch_size
        self.patch_embed = PatchEmbed3D(patch_size, in_chans, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, grid, embed_dim))
        self.blocks = nn.ModuleList(
            Block3D(
                embed_dim, num_heads, mlp_ratio, grid if i in global_attn_indexes else window_size
            )
            for i in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv3d(embed_dim, out_chans, kernel_size=1, bias=False),
            LayerNorm3d(out_chans),
            nn.Conv3d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm3d(out_chans),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, S, S, S) volumes, S = img_size -> (B, out_chans, S / patch_size, ...)."""
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.movedim(-1, 1))
