"""The layout of weights that HSViT's authors train (xuchenhao001/HSViT), under our names.

A hybrid holds a ResNet of Hugging Face, whose names become timm's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

_RULES = (
    (r"^conv2d_layers\.(\d+)\.layer\.0\.convolution", r"trunk.\1.conv1"),
    (r"^conv2d_layers\.(\d+)\.layer\.1\.convolution", r"trunk.\1.conv2"),
    (r"^conv2d_layers\.(\d+)\.layer\.0\.normalization", r"trunk.\1.bn1"),
    (r"^conv2d_layers\.(\d+)\.layer\.1\.normalization", r"trunk.\1.bn2"),
    (r"^embed_projection", "embed"),
    (r"^cls_token_embeddings", "attention.cls_token"),
    (r"^position_embeddings", "attention.pos_embed"),
    (r"^attn_encoders\.(\d+)\.(\d+)\.attn_block\.layer_norm", r"\1:attention.blocks.\2.norm"),
    (r"^attn_encoders\.(\d+)\.(\d+)\.attn_block\.self_attn\.in_proj_", r"\1:attention.blocks.\2.attn.qkv."),
    (r"^attn_encoders\.(\d+)\.(\d+)\.attn_block\.self_attn\.out_proj", r"\1:attention.blocks.\2.attn.proj"),
    (r"^classifier\.mlp_head\.0", "norm"),
    (r"^classifier\.mlp_head\.1", "head"),
    (r"^conv2d_submodule\.embedder\.embedder\.convolution", "trunk.cnn.conv1"),
    (r"^conv2d_submodule\.embedder\.embedder\.normalization", "trunk.cnn.bn1"),
    (r"^conv2d_submodule\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"trunk.cnn.layer\1+1.\2."),
    (r"(cnn.*)\.shortcut\.convolution", r"\1.downsample.0"),
    (r"(cnn.*)\.shortcut\.normalization", r"\1.downsample.1"),
    (r"(cnn.*)\.layer\.(\d+)\.convolution", r"\1.conv\2+1"),
    (r"(cnn.*)\.layer\.(\d+)\.normalization", r"\1.bn\2+1"),
    (r"(\d+)\+1", lambda number: str(int(number[1]) + 1)),  # the reference counts layers from 0, timm from 1
)
"""From the reference's names to ours, one after the other; `g:name` is group g's share of `name`."""


def checkpoint_filter_fn(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The reference's weights under our names, the groups stacked. Our own weights are left as they are."""
    found: dict[str, Tensor] = {}
    shares: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        name = name.removeprefix("model.")
        for pattern, ours in _RULES:
            name = re.sub(pattern, ours, name)
        group, _, rest = name.rpartition(":")
        if group:
            shares.setdefault(rest, {})[int(group)] = tensor
        elif rest in ("attention.cls_token", "attention.pos_embed") and tensor.ndim == 4:
            found[rest] = tensor.squeeze(1)
        else:
            found[rest] = tensor
    stacked = {name: torch.stack([of[group] for group in sorted(of)]) for name, of in shares.items()}
    return found | stacked
