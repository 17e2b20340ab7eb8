"""The search inside ElasticViT's super-network (arXiv 2303.09730): how its subnetworks vary, and what they are worth.

Differs: the reference's script calls what it lacks; this is the algorithm with its parameters. A first draw is steered
         into the band gene by gene, where the reference draws until one fits; any cost bounds the search.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anyvit.models.elasticvit_space import Arch, Outline, Space
from anyvit.models.elasticvit_super import ElasticSuperViT
from anyvit.scaling.design.supernet import Band, Plan
from anyvit.training.batch_norm import recalibrate
from anyvit.training.objectives.banks import Banks

PLAN = Plan(population=512, generations=40, parents=256, mutants=128, children=128)
"""As published."""

NUDGES = 60  # single genes that a draw changes on its way into the band
DEPTH_CHANGES, GENE_CHANGES, UNIFORM = 0.4, 0.2, 0.45


@dataclass(frozen=True)
class BankBand(Band[Arch]):
    """The costs of a bank; of the published space, images of 160 px stay below 380 million MACs."""

    @classmethod
    def of(cls, banks: Banks, target: float) -> BankBand:
        """From a target to the width of a bank above it."""
        return cls(banks.cost_of, target, target + banks.width, banks.name)

    def holds(self, arch: Arch) -> bool:
        return super().holds(arch) and not (self.name == "MACs" and arch.res == 160 and self.cost(arch) > 380e6)


@dataclass
class ElasticGenes:
    """How architectures are drawn and varied; one gene a stage.

    Args:
        space: What they are drawn from, such as `space.above(least)`.
        seed: Of all draws.
    """

    space: Space
    seed: int = 0
    _chance: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def draw(self, band: Band[Arch]) -> Arch:
        """A random one, one gene after the other moved by a step towards the band."""
        arch = self.space.draw(self._chance)
        for _ in range(NUDGES):
            if band.holds(arch):
                break
            ways = self._neighbours(self.space.outline(arch), 1 if band.cost(arch) < band.low else -1)
            if not ways:
                break
            arch = self.space.expand(self._chance.choice(ways))
        return arch

    def mutate(self, parent: Arch) -> Arch:
        """Depths change often, other genes seldom; a new value is often the least one."""
        old, stages = self.space.outline(parent), self.space.stages
        channels: list[int] = []
        for stage, width in zip(stages, old.channels, strict=True):
            least = max(channels, default=0)
            changes = self._chance.random() < GENE_CHANGES or width < least
            channels.append(self._value(stage.channels, least) if changes else width)
        lists = zip(("depths", "ratios", "sizes"), (DEPTH_CHANGES, GENE_CHANGES, GENE_CHANGES), old[2:], strict=True)
        others = (
            tuple(
                self._value(getattr(stage, name)) if self._chance.random() < share else value
                for stage, value in zip(stages, values, strict=True)
            )
            for name, share, values in lists
        )
        res = self._value(self.space.resolutions) if self._chance.random() < GENE_CHANGES else old.res
        return self.space.expand(Outline(res, tuple(channels), *others))

    def cross(self, mother: Arch, father: Arch) -> Arch:
        """Size, widths, depths, and of each kind of stage ratios and sizes: each from one of the two."""
        parents = self.space.outline(mother), self.space.outline(father)
        first = sum(stage.is_conv for stage in self.space.stages)

        def either() -> Outline:
            return self._chance.choice(parents)

        return self.space.expand(
            Outline(
                either().res,
                either().channels,
                either().depths,
                either().ratios[:first] + either().ratios[first:],
                either().sizes[:first] + either().sizes[first:],
            )
        )

    def _value(self, choices: tuple[int, ...], least: int = 0) -> int:
        """A mutated value: as likely uniform as not, else the least choice, and drawn again where it is too small."""
        allowed = [choice for choice in choices if choice >= least]
        uniform = self._chance.random() < UNIFORM or allowed[0] != choices[0]
        return self._chance.choice(allowed) if uniform else allowed[0]

    def _neighbours(self, outline: Outline, way: int) -> list[Outline]:
        """Those that differ by one step of one gene, up or down."""
        found = [outline._replace(res=res) for res in _next(self.space.resolutions, outline.res, way)]
        for name in ("channels", "depths", "ratios", "sizes"):
            values = getattr(outline, name)
            for place, stage in enumerate(self.space.stages):
                for value in _next(getattr(stage, name), values[place], way):
                    changed: dict[str, Any] = {name: (*values[:place], value, *values[place + 1 :])}
                    found.append(outline._replace(**changed))
        return [other for other in found if list(other.channels) == sorted(other.channels)]


def _next(choices: tuple[int, ...], value: int, way: int) -> tuple[int, ...]:
    """The choice after or before a value, if there is one."""
    place = choices.index(value) + way
    return choices[place : place + 1] if place >= 0 else ()


@dataclass
class CalibratedAccuracy:
    """What a subnetwork is worth: its accuracy on held-out images, with BatchNorm statistics of its own.

    Args:
        model: The trained super-network. It is left as it is.
        calibration: Batches of training images (B, C, H, W), in a random order; 64 of 256 as published.
        judged: Batches of images and labels that training has not seen.
    """

    model: ElasticSuperViT
    calibration: Iterable[Tensor]
    judged: Iterable[tuple[Tensor, Tensor]]

    @torch.no_grad()
    def __call__(self, arch: Arch) -> float:
        network = self.model.extract(arch)
        recalibrate(network, self.calibration)
        right = [network(images).argmax(1) == labels for images, labels in self.judged]
        return torch.cat(right).float().mean().item()
