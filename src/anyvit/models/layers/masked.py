"""Layer norm of tokens whose last channels are switched off: the statistics are those of the channels that are on.

So a masked super-network answers as the network cut out of it (ViT-ResNAS, arXiv 2109.00642).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def masked_layer_norm(x: Tensor, norm: nn.LayerNorm, mask: Tensor | None = None) -> Tensor:
    """`norm` over the channels that are on. Always in float32: a difference of means is nothing in half precision.

    Args:
        x: Tokens (B, N, C), already 0 where the mask is.
        norm: Over C channels, with weight and bias.
        mask: Which channels are on, (B, 1, C) bool. None: all, an ordinary layer norm.

    Returns:
        Tokens (B, N, C), 0 where the mask is.
    """
    if mask is None:
        return norm(x)
    with torch.autocast(x.device.type, enabled=False):
        x, on = x.float(), mask.float()
        share = on.mean(-1, keepdim=True)
        mean = x.mean(-1, keepdim=True) / share
        variance = x.square().mean(-1, keepdim=True) / share - mean.square()
        normalized = (x - mean) * torch.rsqrt(variance.clamp(min=0) + norm.eps)
        return (normalized * norm.weight + norm.bias) * on
