"""Which shape a model should have before it is trained. A new method is a new file and one line in `METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from anyvit.scaling.design import by_asvit, by_elasticvit, by_scaling, by_score, by_vit_resnas
from anyvit.scaling.design.brief import Brief
from anyvit.scaling.design.finding import Finding


@dataclass(frozen=True, slots=True)
class Method:
    """A way to design: what finds an answer, and whether it must have images to train on."""

    find: Callable[[Brief], Finding]
    needs_images: bool = False


METHODS: Mapping[str, Method] = {
    "score": Method(by_score.find),
    "scaling": Method(by_scaling.find),
    "asvit": Method(by_asvit.find),
    "vit_resnas": Method(by_vit_resnas.find, needs_images=True),
    "elasticvit": Method(by_elasticvit.find, needs_images=True),
}
