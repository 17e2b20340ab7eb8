"""Which measured candidates are kept, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anyvit.costs.budget import Budget, format_cost
from anyvit.scaling.candidate import Result, Step
from anyvit.scaling.hope import ahead
from anyvit.scaling.search import pareto, primary_cost, within

MOST = 8
"""So many candidates are kept on the front: all of them are resident when they are measured together."""

_SPARES = 2  # of the most accurate inside the budget beside the best one, in case it breaks its promise


def losers(results: Sequence[Result], cost: str) -> Mapping[str, str]:
    """Why candidates are no gain here, by id: a lever that gains nothing on its runtime, a runtime that gains nothing.

    Args:
        results: Measured; the first one is the reference, the unshrunk model in PyTorch's float32.
        cost: What is to be gained.
    """
    reference = results[0]
    unshrunk = {str(_runtime(result)): result for result in results if not result.plain.active}
    reasons = {}
    for result in results[1:]:
        plain = unshrunk.get(str(_runtime(result)), reference) if result.plain.active else reference
        if ahead(cost, plain.costs[cost], result.costs[cost]) <= 0:
            what = "its levers gain" if result.plain.active else "the runtime gains"
            reasons[result.id] = (
                f"{what} nothing here: {cost} {format_cost(cost, result.costs[cost])}, "
                f"and {plain.id} {format_cost(cost, plain.costs[cost])}"
            )
    return reasons


def _runtime(result: Result) -> Step:
    return result.plain.backend


def finalists(results: Sequence[Result], budget: Budget) -> list[Result]:
    """Those worth a closer look: the reference, the front in the first cost, and the best inside the budget.

    Args:
        results: Those that are a gain; the first one is the reference.
        budget: What they are for.
    """
    front = pareto(results, primary_cost(budget))
    inside = sorted((r for r in results if within(r, budget)), key=lambda result: -(result.accuracy or 0.0))
    picked = [results[0], *inside[: 1 + _SPARES], *_spread(front, MOST)]
    return list({result.id: result for result in picked}.values())


def _spread(front: Sequence[Result], most: int) -> Sequence[Result]:
    """Up to `most` of a front, evenly spread, both ends included."""
    if len(front) <= most:
        return front
    return [front[round(place * (len(front) - 1) / (most - 1))] for place in range(most)]


def beaten(result: Result, kept: Sequence[Result], cost: str) -> str:
    """Why a candidate that is a gain is not kept all the same."""
    better = [
        other
        for other in kept
        if ahead(cost, result.costs[cost], other.costs[cost]) >= 0 and (other.accuracy or 0) >= (result.accuracy or 0)
    ]
    return f"{better[0].id} is as good in both" if better else "others on the front are kept in its stead"
