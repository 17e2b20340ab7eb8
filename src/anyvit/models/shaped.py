"""A plain ViT of any shape: timm's VisionTransformer, built by the numbers that a design chooses.

Each weight starts as timm makes it. What a design knows of a shape is `costs.counts.Specification`; its fields are the
arguments here, so a specification rebuilds its model.
"""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from anyvit.errors import ModelError

SHAPED = "shaped_vit"
"""The name it is registered under."""

SUMMARY = "a plain ViT of the image_size, patch_size, depth, heads, head_dim and mlp_ratio it is given"


def _cfg(**others: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **others,
    }


default_cfgs = generate_default_cfgs({SHAPED: _cfg()})


@register_model
def shaped_vit(
    pretrained: bool = False,
    image_size: int = 224,
    patch_size: int = 16,
    depth: int = 12,
    heads: int = 3,
    head_dim: int = 64,
    mlp_ratio: float = 4.0,
    **arguments: Any,
) -> VisionTransformer:
    """A plain ViT of this shape, untrained; by default that of DeiT-Tiny.

    Args:
        pretrained: There are no such weights.
        image_size: Pixels a side, a multiple of `patch_size`.
        patch_size: Pixels a side of a patch.
        depth: Blocks.
        heads: Attention heads of a block.
        head_dim: Channels of a head; the width is heads * head_dim.
        mlp_ratio: Hidden units of an MLP over the width.
        arguments: Others of timm's VisionTransformer.

    Raises:
        ModelError: `pretrained` was asked for, or the patches do not divide the image.
    """
    if pretrained:
        raise ModelError(f"{SHAPED} has no pretrained weights: it is built to a shape. Leave out `pretrained`.")
    if image_size % patch_size:
        raise ModelError(f"image size {image_size} not divisible by patch size {patch_size}")
    asked = arguments.pop("pretrained_cfg_overlay", None) or {}
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        SHAPED,
        False,
        pretrained_filter_fn=checkpoint_filter_fn,
        pretrained_cfg_overlay={"input_size": (3, image_size, image_size), **_whole_image(image_size), **asked},
        img_size=image_size,
        patch_size=patch_size,
        depth=depth,
        num_heads=heads,
        embed_dim=heads * head_dim,
        mlp_ratio=mlp_ratio,
        **arguments,
    )
    return model


def _whole_image(image_size: int) -> dict[str, float]:
    """Small images are not cropped: they have no margin to lose."""
    return {"crop_pct": 1.0} if image_size <= 96 else {}
