"""What ViT-ResNAS is made of: embeddings of patches of 14 px, a transformer block, and a residual spatial reduction.

Letters:  B images, T prefix tokens, N tokens in all, C channels, S patches a side
"""

from __future__ import annotations

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from anyvit.models.vit_resnas_layout import PATCH

EPS = 1e-6
"""Of every norm."""


class LinearEmbedding(nn.Module):
    """Patches of 14 px to tokens (B, S * S, C)."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, width, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ConvNormAct(nn.Module):
    """Convolution of 3 x 3 without bias, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class ConvEmbedding(nn.Module):
    """The same by convolutions at half the resolution, the last two with a residual connection."""

    def __init__(self, in_chans: int, width: int, mid: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_chans, mid, stride=2)
        self.conv2 = ConvNormAct(mid, mid)
        self.conv3 = ConvNormAct(mid, mid)
        self.conv_proj = nn.Conv2d(mid, width, PATCH // 2, PATCH // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv_proj(self.conv3(self.conv2(x)) + x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention whose heads together may be narrower or wider than the tokens."""

    def __init__(self, width: int, num_heads: int, head_dim: int, drop: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, width)
        self.proj_drop = nn.Dropout(drop)

    def mix(self, x: Tensor) -> Tensor:
        """What the heads say, side by side, (B, N, heads * head_dim)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.proj(self.mix(x)))


class Block(nn.Module):
    """A transformer block, pre-norm."""

    def __init__(
        self, width: int, num_heads: int, head_dim: int, hidden: int, *, drop: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = Attention(width, num_heads, head_dim, drop)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(width, EPS)
        self.mlp = Mlp(width, hidden, drop=drop)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Reduction(nn.Module):
    """Residual spatial reduction: S x S patches to half as many a side, from `taken` channels to `given`.

    The residual connection averages patches, leaves the prefix tokens, and adds zeros for the new channels.
    """

    def __init__(self, taken: int, given: int, side: int, num_prefix_tokens: int) -> None:
        super().__init__()
        self.side = side  # before
        self.num_prefix_tokens = num_prefix_tokens
        self.norm = nn.LayerNorm(taken, EPS)
        self.patch_reduce = nn.Conv2d(taken, given, 3, 2, 1)
        self.token_transform = nn.Linear(taken, given)
        self.pos_embed = nn.Parameter(torch.zeros(1, (side // 2) ** 2, given))

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(x, self.norm(x))

    def reduce(self, x: Tensor, normalized: Tensor) -> Tensor:
        """Tokens (B, T + S * S / 4, given) of tokens as they are and normalized."""
        prefix = self.num_prefix_tokens
        patches = self.patch_reduce(self._map(normalized)).flatten(2).transpose(1, 2) + self.pos_embed
        learned = torch.cat([self.token_transform(normalized[:, :prefix]), patches], dim=1)
        pooled = F.avg_pool2d(self._map(x), 2).flatten(2).transpose(1, 2)
        skipped = torch.cat([x[:, :prefix], pooled], dim=1)
        return learned + F.pad(skipped, (0, learned.shape[2] - skipped.shape[2]))

    def _map(self, x: Tensor) -> Tensor:
        return x[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, (self.side, self.side))
