"""What boards and hub compute with: a model without what the other side does, built empty, then filled from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anyvit.models.hsvit import HSViT
from anyvit.models.hydravit import HydraViT
from anyvit.models.layers.indexed import Kept, sliced
from anyvit.scaling.form import Form


def board_side(kind: str, model: HSViT) -> nn.Module:
    """What a board does of `model`, which is changed: all but the vote, or ("tokens") the attention alone."""
    if kind == "tokens":
        return model.attention
    model.norm = model.head = nn.Identity()  # type: ignore[assignment]
    return model


def hub_side(trunk: str, model: HSViT) -> HSViT:
    """What the hub does of `model`, which is changed: the vote, and where the trunk is its own, the tokens too."""
    model.attention = nn.Identity()
    if trunk == "boards":
        model.trunk = model.embed = nn.Identity()
    return model


def empty_hsvit(arguments: Mapping[str, Any]) -> HSViT:
    """The HSViT of these arguments, without weights or memory."""
    with torch.device("meta"):
        return HSViT(**{**arguments, "pretrained_backbone": False})


def empty_board_side(kind: str, models: Sequence[Mapping[str, Any]]) -> nn.Module:
    """The module of a part, without weights or memory."""
    if kind != "features":
        (arguments,) = models
        return board_side(kind, empty_hsvit(arguments))
    return nn.ModuleList(_empty_submodel(recipe) for recipe in models)


def _empty_submodel(recipe: Mapping[str, Any]) -> VisionTransformer:
    """A sub-model without classifier: the form of the ViT that it comes from, and what it keeps of that."""
    with torch.device("meta"):
        model = Form.from_json(recipe["form"]).build()
    plain = model.extract(model.num_heads) if isinstance(model, HydraViT) else model
    smaller = sliced(plain, Kept.from_json(recipe["kept"]))
    smaller.reset_classifier(0)
    return smaller


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give an empty module its weights, exactly those that it has, and make it ready to answer.

    Raises:
        ValueError: A tensor has another type than the module's.
        RuntimeError: One is missing, too many, or of another shape.
    """
    for name, expected in module.state_dict().items():
        if name in tensors and tensors[name].dtype != expected.dtype:
            raise ValueError(f"{name} is {tensors[name].dtype}, not {expected.dtype}")
    module.load_state_dict(tensors, assign=True)
    return module.requires_grad_(False).eval()
