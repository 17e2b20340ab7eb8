"""Design inside a ViT-ResNAS super-network, trained on the images (docs/systems/vitresnas.md). Needs images."""

from __future__ import annotations

from functools import partial

from anyvit.models.vit_resnas_layout import NetworkDef, macs, with_classes
from anyvit.models.vit_resnas_space import space_of, stages
from anyvit.models.vit_resnas_super import ViTResNASSuper
from anyvit.scaling.design.brief import Brief
from anyvit.scaling.design.by_supernet import SuperNetwork, find_in
from anyvit.scaling.design.finding import Finding
from anyvit.scaling.design.supernet import Band
from anyvit.scaling.design.vit_resnas import ResNASGenes
from anyvit.scaling.form import Form
from anyvit.training.objectives import MultiArchitecture

MULTIPLE = 56
"""Of the image size: patches of 14 px, halved twice."""

WIDTHS = (32, 64, 128, 192, 256, 320)
"""Channels of the first stage; each stage doubles them."""

BLOCKS = 4
"""Of each stage."""


def find(brief: Brief) -> Finding:
    """The best subnetwork inside the budget. Raises as `find_in` does."""
    size = max(MULTIPLE, round(brief.image_size / MULTIPLE) * MULTIPLE)
    brief.image_size = size
    return find_in([_super_network(width, size, brief.num_classes) for width in WIDTHS], brief)


def _super_network(width: int, image_size: int, num_classes: int) -> SuperNetwork[NetworkDef]:
    def stage(factor: int, head_dim: int) -> tuple[int, int, list[tuple[int, int]]]:
        channels = width * factor
        return channels, head_dim, [(max(2, channels // head_dim), 3 * channels)] * BLOCKS

    stem = (5, width, min(24, max(8, width // 4)))  # at the published width of 24 it would be most of a small network
    whole = with_classes((stem, *stages(stage(1, 16), stage(2, 16), stage(4, 32))[1:]), num_classes)
    space = space_of(whole)

    def form(network_def: NetworkDef) -> Form:
        return Form("vit_resnas", {"network_def": network_def, "img_size": image_size, "num_classes": num_classes})

    cost = partial(macs, img_size=image_size)
    nothing = Band(cost, 0.0, 0.0)
    return SuperNetwork(
        image_size=image_size,
        build=lambda: ViTResNASSuper(network_def=whole, space=space, img_size=image_size, num_classes=num_classes),
        objective=lambda steps, epochs: MultiArchitecture(steps, warmup_epochs=int(epochs / 4)),
        genes=lambda seed: ResNASGenes(whole, space, seed=seed),
        macs=cost,
        form=form,
        ends=(ResNASGenes(whole, space).draw(nothing), whole),
    )
