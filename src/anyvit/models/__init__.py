"""What runs: Vision Transformers, timm's and our own, which are registered with timm."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from anyvit.errors import ModelError
from anyvit.models import asvit, elasticvit, elasticvit_super, hsvit, repavit, shaped, vit_resnas, vit_resnas_super
from anyvit.models.contract import is_plain_vit, share, why_not_plain
from anyvit.models.hsvit import HSViT
from anyvit.models.hydravit import PRESETS, HydraViT, Preset, elastic

__all__ = [
    "PRESETS",
    "VARIANTS",
    "HSViT",
    "HydraViT",
    "Preset",
    "create_model",
    "elastic",
    "is_plain_vit",
    "share",
    "why_not_plain",
]

VARIANTS: Mapping[str, str] = {
    **{name: preset.summary for name, preset in PRESETS.items()},
    **{name: variant.summary for name, variant in hsvit.VARIANTS.items()},
    **{name: variant.summary for name, variant in repavit.VARIANTS.items()},
    **{name: variant.summary for name, variant in asvit.VARIANTS.items()},
    **elasticvit.VARIANTS,
    **elasticvit_super.VARIANTS,
    **{name: variant.summary for name, variant in vit_resnas.VARIANTS.items()},
    **vit_resnas_super.VARIANTS,
    shaped.SHAPED: shaped.SUMMARY,
}
"""Our models by name, a line each."""


def create_model(name: str, **arguments: Any) -> nn.Module:
    """The model of that name, ours or timm's, as `timm.create_model` makes it.

    Args:
        name: With timm's tag of pretrained weights, if any: `vit_tiny_patch16_224.augreg_in21k`.
        arguments: Of `timm.create_model` and of the model: pretrained, num_classes, img_size, drop_path_rate, ….

    Raises:
        ModelError: No such model, or it does not take the arguments.
    """
    if ":" not in name and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ModelError(f"unknown model {name!r}.{guess} `anyvit list` shows all.")
    try:
        return timm.create_model(name, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        raise ModelError(f"{name}: {error}") from error
