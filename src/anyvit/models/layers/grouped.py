"""Attention groups side by side: G small transformers with weights of their own, computed as one batched product.

Letters: G groups, B images, N tokens a group, D channels, H heads
"""

from __future__ import annotations

import math

import torch
from timm.models import checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from anyvit.errors import ModelError


class GroupedLinear(nn.Module):
    """G linear layers: (G, B, N, I) in, (G, B, N, O) out. Weights (G, O, I), biases (G, O)."""

    def __init__(self, num_groups: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_groups, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(num_groups, out_features))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.baddbmm(self.bias[:, None], x.flatten(1, 2), self.weight.transpose(1, 2))
        return flat.unflatten(1, x.shape[1:3])


class GroupedLayerNorm(nn.Module):
    """G layer norms of (G, B, N, D) over the last dimension. Weights and biases (G, D)."""

    def __init__(self, num_groups: int, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_groups, dim))
        self.bias = nn.Parameter(torch.zeros(num_groups, dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normalized = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return normalized * self.weight[:, None, None] + self.bias[:, None, None]


class GroupedAttention(nn.Module):
    """G self-attentions, as `nn.MultiheadAttention` computes and initializes each."""

    def __init__(self, num_groups: int, dim: int, num_heads: int, drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.drop = drop
        self.qkv = GroupedLinear(num_groups, dim, 3 * dim)
        self.proj = GroupedLinear(num_groups, dim, dim)
        for qkv, proj in zip(self.qkv.weight, self.proj.weight, strict=True):
            nn.init.xavier_uniform_(qkv)
            nn.init.kaiming_uniform_(proj, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        groups, images, tokens, dim = x.shape
        qkv = self.qkv(x).view(groups * images, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.drop if self.training else 0.0)
        return self.proj(x.transpose(1, 2).reshape(groups, images, tokens, dim))


class GroupedBlock(nn.Module):
    """x + attention(norm(x)) in every group. There is no MLP."""

    def __init__(self, num_groups: int, dim: int, num_heads: int, drop: float = 0.0) -> None:
        super().__init__()
        self.norm = GroupedLayerNorm(num_groups, dim)
        self.attn = GroupedAttention(num_groups, dim, num_heads, drop)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm(x))


class AttentionGroups(nn.Module):
    """G transformers, each with a class token and a position table of its own.

    Args:
        num_groups: G.
        tokens_per_group: T, without the class token.
        embed_dim: D.
        depth: Blocks a group.
        num_heads: Heads a block; they divide `embed_dim`.
        drop: Dropout of attention weights.

    Raises:
        ModelError: `num_heads` does not divide `embed_dim`.
    """

    def __init__(
        self, num_groups: int, tokens_per_group: int, embed_dim: int, depth: int, num_heads: int, drop: float = 0.0
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ModelError(f"num_heads {num_heads} does not divide embed_dim {embed_dim}")
        self.num_groups = num_groups
        self.cls_token = nn.Parameter(torch.randn(num_groups, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(num_groups, tokens_per_group + 1, embed_dim))
        self.blocks = nn.ModuleList(GroupedBlock(num_groups, embed_dim, num_heads, drop) for _ in range(depth))
        self.grad_checkpointing = False

    def forward(self, tokens: Tensor) -> Tensor:
        """Class tokens (B, G, D) of tokens (B, G * T, D); the first T go to the first group, and so on."""
        x = self.enter(tokens)
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing and self.training else block(x)
        return x[:, :, 0].transpose(0, 1)

    def enter(self, tokens: Tensor) -> Tensor:
        """What the first blocks see, (G, B, T + 1, D): class token first, positions added."""
        dealt_GBTD = tokens.unflatten(1, (self.num_groups, -1)).transpose(0, 1)
        cls_GB1D = self.cls_token[:, None].expand(-1, dealt_GBTD.shape[1], -1, -1)
        return torch.cat((cls_GB1D, dealt_GBTD), dim=2) + self.pos_embed[:, None]
