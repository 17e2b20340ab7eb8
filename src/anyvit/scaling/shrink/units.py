"""Whole heads and hidden units removed, by DIMAP's measure taken over groups of weights (ours). The model gets smaller.

The energy of a unit is the sum of the squares of its weights: of a hidden unit, its row of fc1 and its column of fc2;
of a head, its rows of query, key and value and its columns of the projection. Layer scale and norms on queries and keys
do not count: the ranking within a layer ignores what scales all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anyvit.models.contract import blocks_of
from anyvit.models.layers.indexed import Kept, Positions
from anyvit.scaling.shrink.importance import check_finite, keep_all_but, prunable, relative

MULTIPLE = 8
"""Hidden units that stay in a block come in multiples of this, where their number was one: matrix products like it."""


def hidden_importance(model: nn.Module) -> dict[str, Tensor]:
    """By the path of each MLP of two linear layers, the importance of its hidden units, in float64."""
    return {
        path: relative(_energy(mlp.fc1.weight).sum(1) + _energy(mlp.fc2.weight).sum(0))
        for path, mlp in model.named_modules()
        if isinstance(mlp, Mlp) and isinstance(mlp.fc1, nn.Linear)
    }


def head_importance(model: VisionTransformer) -> list[Tensor]:
    """By block, the importance of its heads, in float64."""
    found = []
    for block in blocks_of(model):
        heads = (block.attn.num_heads, block.attn.head_dim)
        qkv = _energy(block.attn.qkv.weight).unflatten(0, (3, *heads)).sum((0, 2, 3))
        proj = _energy(block.attn.proj.weight).unflatten(1, heads).sum((0, 2))
        found.append(relative(qkv + proj))
    return found


def strongest(model: VisionTransformer, share: float) -> Kept:
    """What stays when this share of the heads and of the hidden units goes, each ranked over all blocks.

    Every block keeps at least one of each. How many stay in all does not depend on the weights, where all blocks are of
    one size: so neither do the model's parameters.

    Args:
        model: A plain ViT that `sliced` takes.
        share: In [0, 1).

    Raises:
        ModelError: A weight is not finite; the message names the tensor.
    """
    for weights in prunable(model).values():
        for name, weight in weights.items():
            check_finite(name, weight)
    heads, hidden = head_importance(model), list(hidden_importance(model).values())
    return replace(
        Kept.everything(model), heads=_kept(heads, share, multiple=1), hidden=_kept(hidden, share, multiple=MULTIPLE)
    )


def _energy(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float64).square()


def _kept(scores: Sequence[Tensor], share: float, *, multiple: int) -> tuple[Positions, ...]:
    sizes = [len(part) for part in scores]
    stays, _ = keep_all_but(scores, min(math.floor(share * sum(sizes)), sum(sizes) - len(sizes)))
    counts = _rounded([int(part.sum()) for part in stays], math.gcd(multiple, *sizes))
    return tuple(
        tuple(sorted(part.argsort(stable=True)[-count:].tolist())) for part, count in zip(scores, counts, strict=True)
    )


def _rounded(counts: Sequence[int], step: int) -> list[int]:
    """Multiples of `step` close to `counts`, none of them 0; their sum is that of `counts`, rounded up."""
    rounded = [max(step, count - count % step) for count in counts]
    missing = math.ceil(sum(counts) / step) - sum(rounded) // step
    lost_most = sorted(range(len(counts)), key=lambda block: rounded[block] - counts[block])
    for block in lost_most[: max(0, missing)]:
        rounded[block] += step
    return rounded
