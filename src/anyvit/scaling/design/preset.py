"""The default model of a run: which preset suits the images and the budget.

The rule, as the documentation states it: the image size comes from the data; of the presets for it, the one whose
range of untrained latencies (cheapest candidate to full size) best straddles the budget; where none reaches it, those
of the next smaller image size; without a bound on a latency, the small one, unless only another one can keep the
other bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from anyvit.costs.budget import Bound, Budget, format_cost
from anyvit.models.hydravit import PRESETS, Preset
from anyvit.scaling.candidate import Result
from anyvit.scaling.search import TIMED, out_of_reach, within

Ends = Callable[[str], Sequence[Result]]
"""Prices the cheapest and the largest candidates of a preset by name."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A preset, why it was chosen, and, where it cannot meet the budget, why not."""

    preset: Preset
    why: str
    refusal: str | None = None


def choose_preset(image_size: int, budget: Budget, ends: Ends) -> Choice:
    """The preset for images of `image_size` pixels (the shorter side) and a budget.

    Where no preset of any size reaches the budget, the choice is the cheapest one tried, with the refusal that says
    what it can reach.
    """
    sizes = sorted({preset.image_size for preset in PRESETS.values()})
    nearest = min(sizes, key=lambda size: abs(math.log(size / image_size)))
    latency = next((bound for bound in budget.cost_bounds() if bound.cost in TIMED), None)
    refusal = None
    for size in sorted((size for size in sizes if size <= nearest), reverse=True):
        presets = [preset for preset in PRESETS.values() if preset.image_size == size]
        why = f"{size} px is the preset size nearest to the images ({image_size} px)"
        if size < nearest:
            why = f"no preset for {nearest} px reaches the budget, {size} px is the next smaller size"
        small = next(preset for preset in presets if "_small_" in preset.name)
        if latency is None and _able(ends(small.name), budget):  # the others need not be priced
            return Choice(small, f"{why}; without a bound on latency the small one is the default")
        priced = {preset: ends(preset.name) for preset in presets}
        able = {preset: results for preset, results in priced.items() if _able(results, budget)}
        if able and latency:
            return _straddling(able, latency, why)
        if able:
            return Choice(max(able, key=_width), f"{why}; the small one cannot keep {budget}")
        everything = [result for results in priced.values() for result in results]
        cheapest = min(priced, key=_width)
        refusal = Choice(cheapest, f"the smallest for {size} px", out_of_reach(everything, budget))
    assert refusal is not None
    return refusal


def _able(results: Sequence[Result], budget: Budget) -> bool:
    return any(within(result, budget) for result in results)


def _straddling(able: Mapping[Preset, Sequence[Result]], latency: Bound, why: str) -> Choice:
    preset = min(able, key=lambda preset: _off_centre(able[preset], latency))
    costs = [result.costs[latency.cost] for result in able[preset]]
    span = f"{format_cost(latency.cost, min(costs))} to {format_cost(latency.cost, max(costs))}"
    return Choice(preset, f"{why}; its candidates span {span}, which best straddles {latency}")


def _off_centre(results: Sequence[Result], bound: Bound) -> float:
    """How far, in logarithms, the bound lies from the middle of the range that the results span."""
    costs = [result.costs[bound.cost] for result in results]
    return abs(math.log(bound.value) - (math.log(min(costs)) + math.log(max(costs))) / 2)


def _width(preset: Preset) -> int:
    return preset.num_heads * preset.head_dim
