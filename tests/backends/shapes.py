"""Models that the levers make, with weights that leave no part without effect."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from anyvit.models import create_model
from anyvit.protocols import Setting
from anyvit.scaling.shrink import LEVERS, lever_named
from tests.models.conftest import shuffled

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MORE: dict[str, list[Setting]] = {
    "prune": [{"units": 0.35}, {"zeros_not_faster": 0.35}],
    "tokens": [{"method": "evit", "keep_rate": 0.5}, {"method": "tome", "r": 3}],
}
"""What `settings` does not offer for this model, or not last."""


def vit(**arguments) -> VisionTransformer:
    shape = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return VisionTransformer(**{**shape, **arguments})


def names() -> Iterator[str]:
    """Every lever, and its strongest setting or others: `prune-0`."""
    yield "elastic"
    for lever in LEVERS:
        yield from (f"{lever.name} {index}" for index in range(max(1, len(MORE.get(lever.name, ())))))


def shaped(name: str) -> nn.Module:
    elastic = create_model("hydravit_tiny_patch2_8", num_classes=5)
    if name == "elastic":
        return shuffled(elastic)
    lever_name, index = name.split()
    lever = lever_named(lever_name)
    bases = (elastic if lever_name == "heads" else vit(), create_model("hsvit_c2a2_8", num_classes=5))
    base = next(model for model in bases if lever.why_not(model) is None)
    model = shuffled(lever.before_training(base, {}))
    settings = MORE.get(lever_name) or [lever.settings(model)[-1]]
    return lever.apply(model, settings[int(index)], images=IMAGES).eval()
