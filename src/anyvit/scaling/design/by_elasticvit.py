"""Design inside an ElasticViT super-network, trained on the images (docs/systems/elasticvit.md). Needs images."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import numpy as np

from anyvit.models.elasticvit_macs import macs
from anyvit.models.elasticvit_space import PUBLISHED, Arch, Space, Stage
from anyvit.models.elasticvit_super import ElasticSuperViT
from anyvit.scaling.design.brief import Brief
from anyvit.scaling.design.by_supernet import SuperNetwork, find_in
from anyvit.scaling.design.elasticvit import ElasticGenes
from anyvit.scaling.design.finding import Finding
from anyvit.scaling.form import Form
from anyvit.training.objectives import ComplexityAware
from anyvit.training.objectives.banks import Banks

LEVELS = 5
"""Of cost, between the smallest subnetwork and the largest, that training walks through."""

PHOTOGRAPH = 128
"""From so many pixels on, the published space; below, spaces with fewer strides."""

WIDTHS = (8, 16, 32)
"""Channels, least, of the stages of small images."""


def find(brief: Brief) -> Finding:
    """The best subnetwork inside the budget. Raises as `find_in` does."""
    spaces = [PUBLISHED] if brief.image_size >= PHOTOGRAPH else [_small(width, brief) for width in WIDTHS]
    if brief.image_size >= PHOTOGRAPH:
        brief.image_size = min(max(PUBLISHED.resolutions), brief.image_size)
    return find_in([_super_network(space, brief) for space in spaces], brief)


def _small(width: int, brief: Brief) -> Space:
    """For small images: one more halving where they are larger."""
    size = max(16, 2 * round(brief.image_size / 2))
    stride = 2 if size > 32 else 1
    brief.image_size = size

    def channels(factor: int) -> tuple[int, ...]:
        return tuple(range(factor * width, 2 * factor * width + 1, 8))

    return Space(
        resolutions=(size,),
        stages=(
            Stage("conv", 1, False, channels(1), (1, 2), (1,), (3, 5)),
            Stage("conv", 2, False, channels(1), (1, 2, 3), (3, 4), (3, 5)),
            Stage("conv", stride, True, channels(2), (1, 2, 3), (3, 4), (3, 5)),
            Stage("attention", 2, True, channels(3), (1, 2, 3), (2, 3, 4), (2, 3, 4)),
            Stage("attention", 1, True, channels(4), (1, 2, 3), (2, 3, 4), (2, 3, 4)),
        ),
        head_dim=8,
        head_multiplier=4,
        head_width=64 * width,
    )


def _super_network(space: Space, brief: Brief) -> SuperNetwork[Arch]:
    cost = partial(macs, space=space, num_classes=brief.num_classes)
    least, most = cost(space.smallest), cost(space.largest)
    edges = np.linspace(least, most, LEVELS + 1)
    banks = Banks(space, tuple(edges[:-1].tolist()), float(edges[1] - edges[0]), cost=cost)

    def form(arch: Arch) -> Form:
        return Form("elasticvit", {"arch": arch, "space": asdict(space), "num_classes": brief.num_classes})

    return SuperNetwork(
        image_size=max(space.resolutions),
        build=lambda: ElasticSuperViT(space=space, num_classes=brief.num_classes),
        objective=lambda steps, epochs: ComplexityAware(steps, banks),
        genes=lambda seed: ElasticGenes(space, seed),
        macs=cost,
        form=form,
        ends=(space.smallest, space.largest),
    )
