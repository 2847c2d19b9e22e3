"""Image embedding + prompt embeddings -> mask logits and their predicted IoU."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from segment_anything.modeling.common import LayerNorm3d, MLPBlock


class TokenAttention(nn.Module):
    """Multi-head attention (B, N, C) x (B, M, C), inside on C / downsample_rate channels."""

    def __init__(self, dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner = dim // downsample_rate
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, C / heads)
            for x in (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        )
        if q.requires_grad and q.device.type == "cpu":
            # Forward and backward together take half as long as those of the fused function there.
            x = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image to the tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn = TokenAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenAttention(dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp_dim, act=nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = TokenAttention(dim, num_heads, downsample_rate=2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.is_first:  # no positions and no residual: the tokens are their own positions
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        k = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, k, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(k, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer3D(nn.Module):
    """Updates (B, N, C) tokens and (B, M, C) image tokens by each other."""

    def __init__(self, depth: int, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(dim, num_heads, mlp_dim, is_first=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = TokenAttention(dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_pe: Tensor, token_pe: Tensor) -> tuple[Tensor, Tensor]:
        tokens = token_pe
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


class MLP(nn.Module):
    """Linear layers with ReLU in between."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(dims[i], dims[i + 1]) for i in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class MaskDecoder3D(nn.Module):
    """Predicts one mask, and three alternatives for an ambiguous prompt.

    Args:
        transformer_dim: Channels of the embeddings.
        num_multimask_outputs: Alternative masks.
        depth: Two-way blocks.
        num_heads: Attention heads; they divide `transformer_dim / 2`.
        mlp_dim: Hidden channels of a block's MLP.
        iou_head_depth: Layers of the IoU head.
        iou_head_hidden_dim: Its hidden channels.
    """

    def __init__(
        self,
        transformer_dim: int,
        num_multimask_outputs: int = 3,
        depth: int = 2,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
    ) -> None:
        super().__init__()
        dim = transformer_dim
        num_masks = num_multimask_outputs + 1
        self.transformer = TwoWayTransformer3D(depth, dim, num_heads, mlp_dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_masks, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm3d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose3d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(dim, dim, dim // 8, 3) for _ in range(num_masks)
        )
        self.iou_prediction_head = MLP(dim, iou_head_hidden_dim, num_masks, iou_head_depth)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Decode masks for B prompts.

        Args:
            image_embeddings: (B or 1, C, G, G, G); one image may serve all prompts.
            image_pe: (1, C, G, G, G)
            sparse_prompt_embeddings: (B, K, C)
            dense_prompt_embeddings: (B, C, G, G, G)
            multimask_output: The three alternatives instead of the one mask.

        Returns:
            Logits (B, 1 or 3, 4 G, 4 G, 4 G) and predicted IoU (B, 1 or 3).
        """
        batch, grid = len(sparse_prompt_embeddings), image_embeddings.shape[-3:]
        own_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own_tokens.expand(batch, -1, -1), sparse_prompt_embeddings], dim=1)
        image = (image_embeddings + dense_prompt_embeddings).flatten(2).transpose(1, 2)
        tokens, image = self.transformer(image, image_pe.flatten(2).transpose(1, 2), tokens)

        image = self.output_upscaling(image.transpose(1, 2).unflatten(2, grid))
        wanted = slice(1, None) if multimask_output else slice(0, 1)
        mask_tokens = tokens[:, 1 : 1 + self.mask_tokens.num_embeddings]
        kernels = [mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)][
            wanted
        ]
        masks = torch.stack(kernels, dim=1) @ image.flatten(2)
        iou = self.iou_prediction_head(tokens[:, 0])
        return masks.unflatten(2, image.shape[-3:]), iou[:, wanted]
