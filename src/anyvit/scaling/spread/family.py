"""What the sub-models of one ViT need, by the heads they keep, in closed form: none is built to be priced.

With h of H heads a sub-model has the share h / H of the channels and of the hidden units, and a classifier of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from anyvit.costs.counts import Specification, vit_macs, vit_params
from anyvit.models.contract import blocks_of
from anyvit.models.layers.indexed import checked_indexable
from anyvit.models.layers.sliceable import Stays, cuts
from anyvit.scaling.spread.sizes import FLOAT, Size


@dataclass(frozen=True)
class Family:
    """A ViT and its sub-models.

    Attributes:
        num_heads: Of the whole.
        embed_dim: Of the whole.
        num_classes: Of the whole.
        bytes_in: Of a picture, one byte a pixel and channel.
        size: By heads kept and outputs of the classifier, what a sub-model needs.
    """

    num_heads: int
    embed_dim: int
    num_classes: int
    bytes_in: int
    size: Callable[[int, int], Size]

    @classmethod
    def of_shape(cls, shape: Specification) -> Family:
        """Of the plain ViT of this shape."""

        def size(heads: int, outputs: int) -> Size:
            narrow = replace(shape, heads=heads, num_classes=outputs)
            params = vit_params(narrow)
            tokens = shape.num_patches + 1
            alive = _activations(tokens, narrow.embed_dim, narrow.embed_dim, heads, narrow.hidden_dim)
            return Size(params, vit_macs(narrow), FLOAT * params, alive)

        return cls(shape.heads, shape.embed_dim, shape.num_classes, shape.in_chans * shape.image_size**2, size)

    @classmethod
    def of_model(cls, model: nn.Module) -> Family:
        """Of this ViT, whatever its tokens, norms and biases.

        Raises:
            ModelError: It cannot be cut.
        """
        full = checked_indexable(model)
        num_heads, patch = blocks_of(full)[0].attn.num_heads, full.patch_embed
        return cls(
            num_heads,
            full.embed_dim,
            full.num_classes,
            patch.proj.in_channels * prod(patch.img_size),
            lambda heads, outputs: _size(full, heads, num_heads, outputs),
        )

    def width(self, heads: int) -> int:
        """Channels of a sub-model, which are the numbers it sends."""
        return self.embed_dim * heads // self.num_heads


def _size(model: VisionTransformer, heads: int, num_heads: int, outputs: int) -> Size:
    blocks = [
        Stays(
            model.embed_dim * heads // num_heads,
            heads * block.attn.head_dim,
            block.mlp.fc1.out_features * heads // num_heads,
        )
        for block in blocks_of(model)
    ]
    tokens = model.patch_embed.num_patches + model.num_prefix_tokens
    params, macs = 0, sum(2 * tokens**2 * block.attend for block in blocks)
    for name, cut in cuts(model, blocks).items():
        full = model.get_parameter(name)
        shape = [*cut.stays, *[None] * full.ndim]
        sizes = [stays or size for stays, size in zip(shape, cut.apart(full).shape, strict=False)]
        is_head = name.startswith("head")
        count = prod([outputs, *sizes[1:]] if is_head else sizes)
        params += count
        if name.endswith(".weight") and full.ndim > 1:  # of a matrix product or the patch convolution
            times = 1 if is_head else tokens if name.startswith("blocks.") else model.patch_embed.num_patches
            macs += count * times
    alive = max(_activations(tokens, block.embed, block.attend, heads, block.hidden) for block in blocks)
    return Size(params, macs, FLOAT * params, alive)


def _activations(tokens: int, embed: int, attend: int, heads: int, hidden: int) -> int:
    """Bytes alive in a block: its input and norm, and query to answer of the attention or both sides of the MLP."""
    attention = 5 * tokens * attend + heads * tokens**2
    return FLOAT * (3 * tokens * embed + max(attention, 2 * tokens * hidden))
