"""The shapes of plain ViTs that a search goes through: which there are, how they are drawn and varied."""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass, field, replace

from anyvit.costs.counts import Specification
from anyvit.errors import SettingError
from anyvit.scaling.design.factors import Limits, values_of
from anyvit.scaling.design.supernet import Band

PATCHES = (32, 28, 16, 14, 12, 8, 7, 6, 4, 2)
TOKENS = (49, 1024)
"""Patches of an image, least and most: fewer see too little, more are beyond what such a search is for."""

ASPECT = (6, 64)
"""Channels over blocks, from narrow and deep to wide and shallow: what ViTs that were found good keep to."""

CHANGE = 0.35
"""How often a mutation draws a factor anew."""

VARIED = ("patch_size", "depth", "heads", "head_dim", "mlp_ratio")


def limits_for(image_size: int) -> Limits:
    """What plain ViTs for images of that size may be.

    Raises:
        SettingError: No patch size divides the images.
    """
    fewest, most = min(TOKENS[0], (image_size // PATCHES[-1]) ** 2), TOKENS[1]  # the smallest images have fewer
    dividing = [patch for patch in PATCHES if image_size % patch == 0]
    patches = tuple(patch for patch in dividing if fewest <= (image_size // patch) ** 2 <= most)
    if not patches:
        raise SettingError(
            f"image size {image_size} has no patch size among {', '.join(map(str, PATCHES))} that divides it into "
            f"{fewest} to {most} patches: choose {max(8, 16 * round(image_size / 16))}."
        )
    return Limits(
        depth=(1, 32, 1),
        heads=(1, 16, 1),
        head_dim=(16, 96, 8),
        mlp_ratio=(1.0, 6.0, 0.5),
        image_size=(image_size, image_size),
        patch_sizes=patches,
    )


def is_sensible(spec: Specification) -> bool:
    """Whether its width goes with its depth."""
    narrow, wide = ASPECT
    return narrow <= spec.embed_dim / spec.depth <= wide


@dataclass
class ShapeGenes:
    """Plain ViTs for images of one size. The depth follows from the others: as deep as the band allows.

    Attributes:
        image_size: Pixels a side.
        num_classes: Classes.
        chance: What draws follow from.
    """

    image_size: int
    num_classes: int
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def __post_init__(self) -> None:
        self.limits = limits_for(self.image_size)

    def draw(self, band: Band[Specification]) -> Specification:
        return self._deepest(self._any(), band)

    def mutate(self, parent: Specification) -> Specification:
        kept = {name: getattr(parent, name) for name in VARIED if self.chance.random() >= CHANGE}
        return replace(self._any(), **kept)

    def cross(self, mother: Specification, father: Specification) -> Specification:
        return replace(mother, **{name: getattr(self.chance.choice((mother, father)), name) for name in VARIED})

    def ends(self) -> tuple[Specification, Specification]:
        """The cheapest shape and the dearest one that there are."""
        limits = self.limits
        least, most = (
            Specification(
                self.image_size,
                patch,
                int(limits.depth[end]),
                int(limits.heads[end]),
                int(limits.head_dim[end]),
                limits.mlp_ratio[end],
                self.num_classes,
            )
            for end, patch in enumerate((max(limits.patch_sizes), min(limits.patch_sizes)))
        )
        return least, most

    def _deepest(self, spec: Specification, band: Band[Specification]) -> Specification:
        """With as many blocks as the band allows, or as few as go with the width where that is too dear already."""
        shapes = [replace(spec, depth=int(depth)) for depth in values_of(self.limits.depth)]
        sensible = [shape for shape in shapes if is_sensible(shape)]
        fitting = bisect_right(sensible, band.high, key=band.cost)
        return sensible[max(fitting, 1) - 1] if sensible else spec

    def _any(self) -> Specification:
        limits, choice = self.limits, self.chance.choice
        return Specification(
            image_size=self.image_size,
            patch_size=choice(limits.patch_sizes),
            depth=int(choice(values_of(limits.depth))),
            heads=int(choice(values_of(limits.heads))),
            head_dim=int(choice(values_of(limits.head_dim))),
            mlp_ratio=choice(values_of(limits.mlp_ratio)),
            num_classes=self.num_classes,
        )
