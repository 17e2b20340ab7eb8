"""A predictor of latency for the shapes that a budget is about, learned from a few dozen measured here."""

from __future__ import annotations

from collections.abc import Sequence

from anyvit.costs.budget import format_cost
from anyvit.costs.counts import Specification, vit_macs
from anyvit.errors import BudgetError, SettingError
from anyvit.scaling.design.brief import Brief
from anyvit.scaling.design.factors import latin_hypercube
from anyvit.scaling.design.shape_space import ShapeGenes, limits_for

MEASURED = 40
"""Shapes that are measured."""

NEAR = 0.1, 1.5
"""How much of the budget they take, least and most, as far as their MACs tell."""

ORDINARY_GRID = 14
"""Patches a side of the shape that tells the pace, about."""


def learn_latency(brief: Brief) -> None:
    """Give `brief` its predictor of latency, where the budget bounds it. What is measured is remembered on disk.

    It only proposes shapes: what is promised is measured. How far it is off is told.

    Raises:
        BudgetError: Hardly any shape takes about as long as the budget allows.
    """
    if not brief.bounds("latency"):
        return
    shapes = _near_budget(brief)
    brief.tell(f"measuring {len(shapes)} shapes, to predict the others")
    brief.predictor, brief.predictor_error = brief.timer.predictor(shapes, seed=brief.seed)
    brief.tell(str(brief.predictor_error))


def _near_budget(brief: Brief) -> Sequence[Specification]:
    limits = limits_for(brief.image_size)
    patch = min(limits.patch_sizes, key=lambda patch: abs(brief.image_size / patch - ORDINARY_GRID))
    ordinary = Specification(brief.image_size, patch, 4, 3, 64, num_classes=brief.num_classes)
    pace = vit_macs(ordinary) / brief.timer.latency(ordinary).seconds
    least, most = (share * brief.binding.value * pace for share in NEAR)
    try:
        return latin_hypercube(
            limits,
            MEASURED,
            brief.seed,
            lambda spec: least <= vit_macs(spec) <= most,
            num_classes=brief.num_classes,
        )
    except SettingError:
        raise BudgetError(_out_of_reach(brief)) from None


def _out_of_reach(brief: Brief) -> str:
    """The budget is below or above almost everything that there is."""
    ends = ShapeGenes(brief.image_size, brief.num_classes).ends()
    fastest = format_cost("latency", brief.timer.latency(ends[0]).seconds)
    return (
        f"hardly any plain ViT for {brief.image_size} px takes about {brief.binding}: the fastest takes {fastest} "
        f"here, the largest has {format_cost('macs', vit_macs(ends[1]))}MACs. Choose another budget or --image-size."
    )
