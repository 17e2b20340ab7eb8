"""What other rooms may expect of a model: whether it is a plain ViT, and how to work on it without changing it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeGuard, TypeVar

from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def why_not_plain(model: nn.Module) -> str | None:
    """The reason why `model` is no plain ViT, or None.

    Plain means: timm's VisionTransformer or a subclass, all blocks pre-norm with ordinary self-attention first and
    the MLP second. Any number of prefix tokens, any pooling, any MLP.
    """
    if not isinstance(model, VisionTransformer):
        return f"a {type(model).__name__} is not timm's VisionTransformer"
    for index, block in enumerate(blocks_of(model)):
        if type(block) is not Block:
            return f"blocks.{index} is a {type(block).__name__}, not a plain block of attention and MLP"
        if type(block.attn) is not Attention:
            return f"blocks.{index}.attn is a {type(block.attn).__name__}, not plain self-attention"
    return None


def is_plain_vit(model: nn.Module) -> TypeGuard[VisionTransformer]:
    """Whether `model` is a plain ViT in the sense of `why_not_plain`."""
    return why_not_plain(model) is None


def blocks_of(model: VisionTransformer) -> Sequence[Any]:
    """The blocks of a plain ViT. To a type checker their parts are any module or tensor, so they go unchecked."""
    return list(model.blocks)


def share(model: Model) -> Model:
    """New modules over the same parameters and buffers: what is changed about the modules leaves `model` as it is.

    Ten of them need the memory of one. Move or convert a `copy.deepcopy` instead: `.to` would reach the original.
    """
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
