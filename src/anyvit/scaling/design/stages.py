"""Backbones in stages: a strategy found on plain ViTs, applied to PiT and Swin of timm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from anyvit.costs.counts import count_macs
from anyvit.errors import ModelError
from anyvit.models import create_model
from anyvit.scaling.design.factors import CHANNELS, rounded
from anyvit.scaling.design.strategy import DEEPEST, Applied, Strategy, nearest


@dataclass(frozen=True, slots=True)
class Stages:
    """The shape of a backbone in stages; patches and strides stay those of the model it is named after.

    Args:
        name: Of the registered model.
        family: "pit" or "swin".
        image_size: Pixels a side, a multiple of `stride`.
        depths: Blocks of each stage.
        heads: Of each stage.
        head_dims: Channels of a head, by stage.
        mlp_ratio: Hidden units over channels.
        stride: Pixels of the image a side for a token of the last stage.
    """

    name: str
    family: str
    image_size: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    head_dims: tuple[int, ...]
    mlp_ratio: float
    stride: int

    @property
    def arguments(self) -> dict[str, Any]:
        """What timm's model is built with."""
        shared = {"img_size": self.image_size, "mlp_ratio": self.mlp_ratio}
        if self.family == "swin":
            width = self.heads[0] * self.head_dims[0]
            return {**shared, "depths": self.depths, "num_heads": self.heads, "embed_dim": width}
        return {**shared, "depth": self.depths, "heads": self.heads, "base_dims": self.head_dims}

    def build(self, **more: Any) -> nn.Module:
        """The model with fresh weights. `more` is passed to `create_model`."""
        return create_model(self.name, **self.arguments, **more)

    def macs(self) -> int:
        """Multiply-accumulates of an image, counted without weights."""
        with torch.device("meta"):
            return count_macs(self.build(), self.image_size)


def stages_of(name: str) -> Stages:
    """The shape of a registered PiT or Swin.

    Raises:
        ModelError: It is of another family.
    """
    with torch.device("meta"):
        model = create_model(name)
    if isinstance(model, PoolingVisionTransformer):
        return _of(name, "pit", model, [*model.transformers])
    if isinstance(model, SwinTransformer):
        return _of(name, "swin", model, [*model.layers])
    raise ModelError(f"{name} is neither a PiT nor a Swin: of backbones in stages only these are scaled.")


def _of(name: str, family: str, model: Any, stages: list[Any]) -> Stages:
    first = [stage.blocks[0] for stage in stages]
    heads = tuple(block.attn.num_heads for block in first)
    widths = [block.mlp.fc1.in_features for block in first]
    return Stages(
        name,
        family,
        image_size=model.patch_embed.img_size[0],
        depths=tuple(len(stage.blocks) for stage in stages),
        heads=heads,
        head_dims=tuple(width // count for width, count in zip(widths, heads, strict=True)),
        mlp_ratio=first[0].mlp.fc1.out_features / widths[0],
        stride=model.feature_info[-1]["reduction"],
    )


def apply_to_stages(
    strategy: Strategy, base: Stages, target: float, cost: Callable[[Stages], float]
) -> Applied[Stages]:
    """Scale a backbone in stages to a target: every stage alike, then all depths together for what rounding has lost.

    Args:
        strategy: Found on plain ViTs. What it says of patches is left aside.
        base: What is scaled.
        target: In the unit of the cost.
        cost: Of a shape, as `Stages.macs`, or a latency.

    Raises:
        SettingError: The target is not above 0.
    """
    by = strategy.factors(target / cost(base))
    first = rounded(base.heads[0] * by["heads"])  # the others follow: widths must stay multiples from stage to stage
    wide = replace(
        base,
        image_size=rounded(base.image_size * by["image_size"], base.stride),
        heads=tuple(first * count // base.heads[0] for count in base.heads),
        head_dims=tuple(rounded(width * by["head_dim"], CHANNELS) for width in base.head_dims),
        mlp_ratio=0.5 * rounded(base.mlp_ratio * by["mlp_ratio"] / 0.5),
    )
    whole = sum(base.depths)
    deeper = (tuple(rounded(depth * blocks / whole) for depth in base.depths) for blocks in range(1, DEEPEST + 1))
    return nearest([replace(wide, depths=depths) for depths in dict.fromkeys(deeper)], cost, target)
