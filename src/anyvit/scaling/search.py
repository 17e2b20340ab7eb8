"""What results are worth under a budget: which are inside, which form the front, which one is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anyvit.costs.budget import Budget, format_cost
from anyvit.costs.timing import PROMISE_MARGIN
from anyvit.errors import BudgetError
from anyvit.scaling.candidate import Result

TIMED = ("latency", "latency_p95", "latency_expected", "latency_e2e", "throughput")
"""The costs that need a clock. They are promised only with a margin to spare."""


def margin_of(cost: str) -> float:
    """By which factor a cost must be better than its bound, for the bound to be promised."""
    return PROMISE_MARGIN if cost in TIMED else 1.0


def within(result: Result, budget: Budget) -> bool:
    """Does `result` keep every bound on a cost, the timed ones with the margin of a promise?"""
    return all(bound.met_by(result.costs[bound.cost], margin_of(bound.cost)) for bound in budget.cost_bounds())


def pareto(results: Sequence[Result], cost: str) -> list[Result]:
    """The results that no other one beats in both `cost` and accuracy, by rising cost; only those evaluated."""
    front: list[Result] = []
    scored = [(result.accuracy, result) for result in results if result.accuracy is not None]
    lower_is_better = -1 if cost == "throughput" else 1
    for accuracy, result in sorted(scored, key=lambda pair: (lower_is_better * pair[1].costs[cost], -pair[0])):
        if not front or accuracy > (front[-1].accuracy or 0.0):
            front.append(result)
    return front


def choose(results: Sequence[Result], budget: Budget, *, spare: float = 0.0) -> Result:
    """The most accurate result inside the budget's costs; of equals the one that is better in the first cost.

    Where the budget bounds accuracy alone, the fastest result that keeps it, with so much to `spare` where any has.
    Where nothing is evaluated yet, more parameters stand for more accuracy.

    Raises:
        BudgetError: None is inside; the message gives the best value that can be reached for each bound.
    """
    inside = [result for result in results if within(result, budget)]
    if not inside:
        raise BudgetError(out_of_reach(results, budget))
    accuracy = budget.accuracy_bound()
    for share in (spare, 0.0):
        good = [result for result in inside if accuracy and accuracy.met_by((result.accuracy or 0.0) - share)]
        if good and not budget.cost_bounds():
            return best(good, primary_cost(budget))
    return max(inside, key=lambda result: (result.accuracy or 0.0, _size_first(result, budget)))


def _size_first(result: Result, budget: Budget) -> float:
    if result.accuracy is None:
        return result.costs["params"]
    cost = primary_cost(budget)
    return result.costs[cost] if cost == "throughput" else -result.costs[cost]


def best(results: Sequence[Result], cost: str) -> Result:
    """The result that is best in a cost; of equals the first."""
    return (max if cost == "throughput" else min)(results, key=lambda result: result.costs[cost])


def closest(results: Sequence[Result], budget: Budget) -> Result:
    """The result whose worst miss, as a ratio to its bound, is smallest."""

    def worst_miss(result: Result) -> float:
        ratios = [result.costs[bound.cost] / bound.value for bound in budget.cost_bounds()]
        signs = [1.0 if bound.operator == "<=" else -1.0 for bound in budget.cost_bounds()]
        return max((ratio**sign for ratio, sign in zip(ratios, signs, strict=True)), default=0.0)

    return min(results, key=worst_miss)


def primary_cost(budget: Budget) -> str:
    """The cost that a budget is mainly about: the first one bound, else the latency."""
    bounds = budget.cost_bounds()
    return bounds[0].cost if bounds else "latency"


def reachable(results: Sequence[Result], budget: Budget) -> Mapping[str, tuple[float, str]]:
    """For each bound the best value that any result reaches, and that result's id."""
    best = {}
    for bound in budget.cost_bounds():
        pick = min if bound.operator == "<=" else max
        result = pick(results, key=lambda result, cost=bound.cost: result.costs[cost])  # type: ignore[misc]
        best[bound.cost] = (result.costs[bound.cost], result.id)
    return best


def out_of_reach(results: Sequence[Result], budget: Budget) -> str:
    """The words for a budget that none of `results` meets."""
    best = reachable(results, budget)
    missed = [bound for bound in budget.cost_bounds() if not bound.met_by(best[bound.cost][0], margin_of(bound.cost))]
    words = [
        f"{bound} (best: {format_cost(bound.cost, best[bound.cost][0])} with {best[bound.cost][1]})"
        for bound in missed or budget.cost_bounds()
    ]
    together = "" if missed else " together, though each alone can"
    margin = " Timings are promised with 5% to spare." if any(b.cost in TIMED for b in budget.cost_bounds()) else ""
    return (
        f"{', '.join(words)} cannot be met{together} by any of {len(results)} candidates.{margin} "
        "Allow more, choose a smaller --model, or use --anyway to go on all the same."
    )
