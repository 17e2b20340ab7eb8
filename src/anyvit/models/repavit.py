"""RePaViT: MLPs that merge into less than half of their weights once the model is trained.

Paper:    Xu, Li, Chang, Sheng, Liang, Lyu, Zhang, ICML 2025, arXiv 2505.21847
Weights:  Ackesnal/RePaViT's layout, mapped by `repavit_layout`, merged or not; the idle ratio must be told
Differs:  built on timm's models, whose blocks stay as they are: norm and layer scale move into the MLP, the residual
          connection stays outside, so a merged matrix is the reference's without the identity; layer scale merges with
          the bias too, which the reference forgets
Letters:  C channels, H hidden units, A active ones
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import GroupNorm1
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.metaformer import MetaFormer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError, unknown
from anyvit.models.contract import blocks_of
from anyvit.models.layers.channel_idle import active_units, blocks_with_mlp, make_idle
from anyvit.models.repavit_layout import active_of_merged, arguments_of, checkpoint_filter_fn, kind_of

SCHEDULES = ("static", "linear")


class RePaViT(VisionTransformer):
    """timm's VisionTransformer with channel-idle MLPs, a norm before the blocks, and patches embedded without a bias.

    Args:
        idle_ratio: The share of hidden units that are not activated.
        schedule: "static", the same in each block, or "linear", rising from block to block and 0 in the last.
        feature_norm: "batch", which merges, or "layer", which does not.
        arguments: Those of timm's VisionTransformer.

    Raises:
        SettingError: An idle ratio out of range, or an unknown schedule or norm.
    """

    def __init__(
        self, *, idle_ratio: float = 0.75, schedule: str = "static", feature_norm: str = "batch", **arguments: Any
    ) -> None:
        super().__init__(**{"pre_norm": True, **arguments})
        ratios = idle_ratios(idle_ratio, schedule, len(self.blocks))
        for block in blocks_of(self):
            block.norm1.eps = 1e-5  # timm's is 1e-6, as in the norms outside the blocks
        make_idle(
            self,
            [active_units(hidden, r) for hidden, r in zip(hidden_of(self), ratios, strict=True)],
            norm=feature_norm,
        )


class RePaSwin(SwinTransformer):
    """timm's SwinTransformer with channel-idle MLPs.

    Args:
        idle_ratio: The share of hidden units that are not activated.
        feature_norm: "batch", which merges, or "layer", which does not.
        arguments: Those of timm's SwinTransformer.

    Raises:
        SettingError: An idle ratio out of range, or an unknown norm.
    """

    def __init__(self, *, idle_ratio: float = 0.75, feature_norm: str = "batch", **arguments: Any) -> None:
        super().__init__(**arguments)
        make_idle(self, [active_units(hidden, idle_ratio) for hidden in hidden_of(self)], norm=feature_norm)


class RePaPoolFormer(MetaFormer):
    """The PoolFormer among timm's MetaFormers with channel-idle MLPs.

    As in the reference, A is rounded down, and the whole last map is normalized before it is averaged (timm averages
    first).

    Args:
        idle_ratio: The share of hidden units that are not activated.
        arguments: Those of timm's MetaFormer.

    Raises:
        SettingError: An idle ratio out of range.
    """

    def __init__(self, *, idle_ratio: float = 0.75, **arguments: Any) -> None:
        poolformer = {
            **{"downsample_norm": None, "mlp_act": nn.GELU, "mlp_bias": True, "norm_layers": GroupNorm1},
            **{"layer_scale_init_values": 1e-5, "res_scale_init_values": None, "use_mlp_head": False},
        }
        super().__init__(**{**poolformer, **arguments})
        self.norm = GroupNorm1(self.num_features)
        self.head.norm = nn.Identity()
        make_idle(self, [active_units(hidden, idle_ratio, rounded=math.floor) for hidden in hidden_of(self)])

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(super().forward_features(x))


def hidden_of(model: nn.Module) -> list[int]:
    """H of each block."""
    return [block.mlp.fc1.weight.shape[0] for _, block in blocks_with_mlp(model)]


def idle_ratios(idle_ratio: float, schedule: str, depth: int) -> list[float]:
    """The idle ratio of each block.

    Raises:
        SettingError: An unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise SettingError(unknown("schedule", schedule, SCHEDULES))
    if schedule == "static":
        return [idle_ratio] * depth
    first, step = 2 * idle_ratio - 1, (2 - 2 * idle_ratio) / max(1, depth - 1)
    return [*(first + step * (place + 1) for place in range(depth - 1)), 0.0]


@dataclass(frozen=True, slots=True)
class Variant:
    """A shape with a name."""

    name: str
    summary: str
    model: type[nn.Module]
    image_size: int
    arguments: Mapping[str, Any]


def _vit(size: str, width: int, depth: int, heads: int, *, pixels: int = 224, patch: int = 16) -> Variant:
    summary = f"{pixels} px, patches of {patch} px, {depth} blocks, {width} channels, 3 of 4 hidden units idle"
    shape = {"img_size": pixels, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    return Variant(f"repavit_{size}_patch{patch}_{pixels}", summary, RePaViT, pixels, shape)


def _swin(size: str, width: int, depths: Sequence[int]) -> Variant:
    heads = tuple(width // 32 * 2**stage for stage in range(4))
    summary = f"224 px, windows of 7, {sum(depths)} blocks, {width} to {8 * width} channels, 3 of 4 hidden units idle"
    shape = {"embed_dim": width, "depths": tuple(depths), "num_heads": heads, "window_size": 7}
    return Variant(f"repaswin_{size}_patch4_window7_224", summary, RePaSwin, 224, shape)


VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        _vit("tiny", 64, 4, 4, pixels=8, patch=2),
        _vit("tiny", 192, 12, 3),
        _vit("small", 384, 12, 6),
        _vit("base", 768, 12, 12),
        _vit("large", 1024, 24, 16),
        _vit("huge", 1280, 32, 16),
        _swin("tiny", 96, (2, 2, 6, 2)),
        _swin("small", 96, (2, 2, 18, 2)),
        _swin("base", 128, (2, 2, 18, 2)),
    )
}

default_cfgs = generate_default_cfgs(
    {
        variant.name: {
            "input_size": (3, variant.image_size, variant.image_size),
            "num_classes": 1000,
            "pool_size": (7, 7) if variant.model is RePaSwin else None,
            "crop_pct": 0.875 if variant.image_size == 224 else 1.0,
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc" if variant.model is RePaSwin else "head",
        }
        for variant in VARIANTS.values()
    }
)


def _register(variant: Variant) -> None:
    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
        return build_model_with_cfg(
            variant.model,
            variant.name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": 3, "feature_cls": "getter"},
            **{**variant.arguments, **arguments},
        )

    build.__name__ = variant.name
    register_model(build)


for _each in VARIANTS.values():
    _register(_each)


_MODELS: Mapping[str, type[nn.Module]] = {"vit": RePaViT, "swin": RePaSwin, "poolformer": RePaPoolFormer}


def from_reference(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> nn.Module:
    """The model that weights in the reference's layout belong to, merged where they are.

    Args:
        weights: Of a plain ViT, a Swin or a PoolFormer.
        config: The reference's own words, such as `idle_ratio`, which no tensor tells; what is left out is read off
            the shapes, with heads of 64 channels in a plain ViT, as published.

    Raises:
        SettingError: A word that is missing or unknown.
        ModelError: Weights that are not those of the model described.
    """
    kind, merged = kind_of(weights), active_of_merged(weights)
    try:
        arguments = arguments_of(kind, weights, config or {})
    except KeyError as missing:
        raise ModelError(f"these are not the weights of a whole {kind}: {missing} is missing") from None
    if not merged and "idle_ratio" not in arguments:
        raise SettingError("the weights do not tell idle_ratio, the share of idle channels: give it in config")
    try:
        model = _MODELS[kind](**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ModelError(f"config describes no model: {error}") from error
    try:
        if merged:
            _merge_as(model.eval(), merged)
        model.load_state_dict(checkpoint_filter_fn(weights, model))
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise ModelError(f"these weights are not those of the model described: {error}") from None
    return model


def _merge_as(model: nn.Module, active: Sequence[int]) -> None:
    """The merged form, in place, with so many active units block by block; the weights are to be loaded."""
    for (_, block), units in zip(blocks_with_mlp(model), active, strict=True):
        block.mlp.active = units
        block.mlp = block.mlp.fuse()
