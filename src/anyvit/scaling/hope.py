"""By how much a guessed candidate may well be better than what is measured: what a search follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from anyvit.costs.budget import Bound, Budget
from anyvit.scaling.candidate import Result
from anyvit.scaling.ranker import Guess
from anyvit.scaling.search import best, margin_of, primary_cost, within

Hope = Callable[[Mapping[str, Guess]], float]
"""From the guesses about a candidate, by cost, to its hoped-for gain in accuracy, or in a share of cost; above 0."""


def hope_for(budget: Budget, results: Sequence[Result]) -> Hope:
    """What there is to hope for under `budget`, once `results` are measured."""
    bounds, accuracy = budget.cost_bounds(), budget.accuracy_bound()
    inside = [result for result in results if within(result, budget)]
    if bounds and inside:
        return _more_accurate_inside(bounds, max(result.accuracy or 0.0 for result in inside))
    if bounds:
        return _nearer(bounds)
    good = [result for result in results if accuracy and accuracy.met_by(result.accuracy or 0.0)]
    if accuracy and good:
        cost = primary_cost(budget)
        return _cheaper(accuracy, cost, best(good, cost).costs[cost])
    return _beyond_the_front(primary_cost(budget), results)


def _more_accurate_inside(bounds: Sequence[Bound], known: float) -> Hope:
    def hope(guesses: Mapping[str, Guess]) -> float:
        miss = max(_miss(bound, guesses[bound.cost].best_cost) for bound in bounds)
        return -miss if miss > 0 else guesses[bounds[0].cost].best_accuracy - known

    return hope


def _nearer(bounds: Sequence[Bound]) -> Hope:
    """Nothing is inside yet: whatever comes nearest to the bound that it misses most."""

    def hope(guesses: Mapping[str, Guess]) -> float:
        return 1.0 / (1.0 + max(_miss(bound, guesses[bound.cost].cost) for bound in bounds))

    return hope


def _miss(bound: Bound, value: float) -> float:
    """By which share a value misses a bound; above -1, and negative where it keeps it."""
    share = value / bound.value if bound.operator == "<=" else bound.value / value
    return share * margin_of(bound.cost) - 1


def _cheaper(accuracy: Bound, cost: str, known: float) -> Hope:
    def hope(guesses: Mapping[str, Guess]) -> float:
        guess = guesses[cost]
        return ahead(cost, known, guess.best_cost) if accuracy.met_by(guess.best_accuracy) else 0.0

    return hope


def _beyond_the_front(cost: str, results: Sequence[Result]) -> Hope:
    def hope(guesses: Mapping[str, Guess]) -> float:
        guess = guesses[cost]
        as_cheap = [
            result.accuracy or 0.0 for result in results if ahead(cost, guess.best_cost, result.costs[cost]) >= 0
        ]
        return guess.best_accuracy - max(as_cheap, default=0.0)

    return hope


def ahead(cost: str, value: float, other: float) -> float:
    """By which share `other` is better than `value` in a cost; negative where it is worse."""
    return other / value - 1 if cost == "throughput" else 1 - other / value
