"""Scaling a plain ViT to a budget, one factor at a time (hardware-aware scaling, doi 10.1145/3611387).

Each step multiplies the cost by a ratio. Every factor alone says which of its values comes nearest to that; those near
enough are evaluated, and the best one is the next shape. What a shape costs is any function of it: MACs, memory, a
latency predicted or measured.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from anyvit.costs.counts import Specification, vit_macs
from anyvit.costs.timing import Latency
from anyvit.errors import BudgetError, SettingError
from anyvit.protocols import Event, Progress, silent
from anyvit.scaling.design.factors import CHANNELS, FACTORS, Limits, scaled
from anyvit.scaling.design.shape import Worth, name_of
from anyvit.scaling.design.trace import EXHAUSTED, OFF_TARGET, OK, Move, ScalingStep, Trace, Trained

Cost = Callable[[Specification], float]
"""What a shape costs, in any unit; more of a factor costs more."""

Measure = Callable[[Sequence[Specification]], Mapping[Specification, Latency]]
"""How long shapes take that are compared with each other: `ShapeTimer.latencies`."""

Evaluate = Callable[[Specification], Worth | float]
"""What a shape is worth: higher is better. A number alone has no standard error."""

FAR = 4.0
"""Times the target: costs rise with the value, so beyond it no value is looked at."""


def greedy(
    base: Specification,
    budget: float,
    cost: Cost,
    evaluate: Evaluate,
    *,
    ratio: float = 2.0,
    tol: float = 0.12,
    limits: Limits | None = None,
    slim: bool = False,
    measure: Measure | None = None,
    trace: Trace | None = None,
    kept: Callable[[Trace], None] = lambda trace: None,
    progress: Progress = silent,
) -> Trace:
    """Scale `base` until it costs `budget`, step by step, each time by the factor that is worth most.

    Shapes within one standard error of the best count as equal, and the cheaper wins.

    Args:
        base: The shape to start with, cheaper than the budget.
        budget: In the unit of the cost. The final shape may miss it by `tol`, to either side.
        cost: Of a shape.
        evaluate: Dear: each shape is evaluated once, and what is in `trace` is not evaluated again. Within a step it is
            the evaluator that must remember, as `ShortTraining` does.
        ratio: From the cost of one step to that of the next.
        tol: How far from its target a shape may be, as a share.
        limits: What the factors may be.
        slim: After each step try exchanges too: a factor one step back, another one grown to the same cost. Kept where
            accuracy rises by more than one standard error. Growth alone never lowers an image size.
        measure: Measures the shapes that a step compares, all together, where `cost` only predicts their latency.
        trace: Of an interrupted search, or of one that ended at a smaller budget: it goes on.
        kept: Called after each step with all that is known, to be written.
        progress: Told how far it is.

    Returns:
        The path, whose `final` is the shape. Where no factor could reach a step's target, `stuck` says so.

    Raises:
        SettingError: `ratio` or `tol` out of range, a cost or an accuracy that is not finite, or `trace` is of another
            base.
        BudgetError: The base costs more than the budget.
    """
    _check(base, ratio, tol)
    search = _Search(cost, evaluate, tol, limits or Limits(), measure, trace.accuracies if trace else {}, progress)
    trace = _begun(base, budget, ratio, tol, trace, search)
    while True:
        progress(_how_far(trace))
        if slim and trace.steps and not trace.steps[-1].exchange:
            step = search.exchange(trace)
        elif not trace.reached:
            step = search.growth(trace)
        else:
            return trace
        trace = replace(trace, steps=(*trace.steps, step))
        kept(trace)
        if trace.stuck:
            return trace


def grid(
    base: Specification,
    budget: float,
    cost: Cost,
    evaluate: Evaluate,
    multipliers: Mapping[str, Sequence[float]],
    *,
    tol: float = 0.12,
    limits: Limits | None = None,
    progress: Progress = silent,
) -> list[Trained]:
    """Evaluate every combination of multiplied factors that costs about the budget: for small spaces.

    Args:
        base: What is multiplied.
        budget: In the unit of the cost.
        cost: Of a shape.
        evaluate: Each shape inside the band, once.
        multipliers: By factor; those left out stay. Values are rounded to what a ViT can be.
        tol: How far from the budget a shape may be, as a share.
        limits: Whose patch sizes may be.
        progress: Told how far it is.

    Returns:
        The shapes, the best first; those within one standard error of it rank by cost.

    Raises:
        SettingError: As `greedy`, or an unknown factor.
        BudgetError: None costs about the budget; it names the nearest.
    """
    if unknown := multipliers.keys() - set(FACTORS):
        raise SettingError(f"unknown factors {', '.join(sorted(unknown))}. Known: {', '.join(FACTORS)}.")
    search = _Search(cost, evaluate, tol, limits or Limits(), None, {}, progress)
    ways = [dict(zip(multipliers, values, strict=True)) for values in product(*multipliers.values())]
    specs = dict.fromkeys(scaled(base, way, search.limits.patch_sizes) for way in ways)
    priced = {spec: search.priced(spec) for spec in specs}
    inside = [spec for spec in priced if search.near(priced[spec], budget)]
    if not inside:
        nearest = min(priced.values(), key=lambda price: _off(price, budget))
        raise BudgetError(
            f"none of {len(priced)} combinations costs {budget:.4g} within {tol:.0%}: the nearest costs {nearest:.4g}."
        )
    left = [Trained(spec, priced[spec], search.worth(spec)) for spec in inside]
    ranked = []
    while left:
        ranked.append(search.best(left))
        left.remove(ranked[-1])
    return ranked


@dataclass
class _Search:
    """What a step needs to know, and what is known of shapes already."""

    cost: Cost
    evaluate: Evaluate
    tol: float
    limits: Limits
    measure: Measure | None
    known: dict[Specification, Worth]
    progress: Progress

    def __post_init__(self) -> None:
        self._latencies: dict[Specification, Latency] = {}

    def growth(self, trace: Trace) -> ScalingStep:
        """More of one factor."""
        target = min(trace.cost * trace.ratio, trace.budget)
        moves = [self._grown(trace.final, factor, target) for factor in FACTORS]
        moves = self._evaluated(self._measured(moves, target))
        return ScalingStep(target, tuple(moves), self._choice(moves))

    def exchange(self, trace: Trace) -> ScalingStep:
        """Less of one factor and more of another, for the same cost."""
        target = min(trace.cost, trace.budget)
        been = {spec for spec, _ in trace.path}  # back there, and the search would never end
        moves = []
        for shrunk, factor in product(FACTORS, FACTORS):
            less = self.limits.shrunk(trace.final, shrunk)
            if less and factor != shrunk:
                moves.append(replace(self._grown(less, factor, target), shrunk=shrunk))
        moves = self._evaluated(self._measured([move for move in moves if move.spec not in been], target))
        now = self.worth(trace.final)
        better = [m for m in moves if m.accuracy and m.accuracy.value - now.value > _error(m.accuracy, now)]
        return ScalingStep(target, tuple(moves), self._choice(better), exchange=True)

    def _choice(self, moves: Sequence[Move]) -> str | None:
        """The name of the best of those that were evaluated."""
        able = {Trained(m.spec, m.cost, m.accuracy): m.name for m in moves if m.spec and m.cost and m.accuracy}
        return able[self.best([*able])] if able else None

    def priced(self, spec: Specification) -> float:
        """What it costs, measured where it was."""
        price = self._latencies[spec].seconds if spec in self._latencies else self.cost(spec)
        if not 0 < price < math.inf:
            raise SettingError(f"a cost must be above 0 and finite, not {price} of {name_of(spec)}")
        return price

    def time(self, specs: Sequence[Specification]) -> None:
        """Measure them together, where the search measures."""
        if self.measure and specs:
            self._latencies |= self.measure(specs)

    def near(self, price: float, target: float) -> bool:
        return abs(price / target - 1) <= self.tol

    def worth(self, spec: Specification) -> Worth:
        """The accuracy, evaluated when it is first asked for."""
        if spec not in self.known:
            self.progress(Event("design", f"evaluating {name_of(spec)}"))
            found = self.evaluate(spec)
            accuracy = found if isinstance(found, Worth) else Worth(float(found), 0.0)
            if not (math.isfinite(accuracy.value) and math.isfinite(accuracy.standard_error)):
                raise SettingError(f"evaluator returned {accuracy.value} for spec {name_of(spec)}")
            self.known[spec] = accuracy
        return self.known[spec]

    def best(self, trained: Sequence[Trained]) -> Trained:
        """The highest accuracy; among those within one standard error of it the cheapest, then the first."""
        top = max(trained, key=lambda one: one.accuracy.value).accuracy
        equal = [one for one in trained if top.value - one.accuracy.value <= _error(top, one.accuracy)]
        cheapest = min(equal, key=lambda one: one.cost)
        doubtful = [one for one in equal if one is cheapest or self._doubtful(cheapest.spec, one.spec)]
        if len(doubtful) == 1:
            return cheapest
        names = ", ".join(name_of(one.spec) for one in doubtful)
        logging.getLogger("anyvit").warning("timings of %s are unstable and overlap: their MACs decide", names)
        return min(doubtful, key=lambda one: vit_macs(one.spec))

    def _doubtful(self, one: Specification, other: Specification) -> bool:
        """Whether the clock cannot tell which of the two is faster."""
        a, b = self._latencies.get(one), self._latencies.get(other)
        if a is None or b is None or not (a.unstable or b.unstable):
            return False
        return a.interval[0] <= b.interval[1] and b.interval[0] <= a.interval[1]

    def _grown(self, spec: Specification, factor: str, target: float) -> Move:
        """The value of one factor whose cost is nearest to the target."""
        priced: dict[Specification, float] = {}
        for larger in self.limits.grown(spec, factor):
            priced[larger] = self.priced(larger)
            if priced[larger] > FAR * target:
                break
        if not priced:
            return Move(factor, EXHAUSTED)
        nearest = min(priced, key=lambda larger: _off(priced[larger], target))
        return Move(factor, self._status(priced[nearest], target), nearest, priced[nearest])

    def _measured(self, moves: Sequence[Move], target: float) -> list[Move]:
        """The moves with the cost that was measured in place of the predicted, and judged by it."""
        self.time([move.spec for move in moves if move.spec and move.status == OK])
        again = [(move, self._latencies.get(move.spec) if move.spec else None) for move in moves]
        return [
            replace(move, status=self._status(latency.seconds, target), cost=latency.seconds) if latency else move
            for move, latency in again
        ]

    def _evaluated(self, moves: Sequence[Move]) -> list[Move]:
        return [
            replace(move, accuracy=self.worth(move.spec)) if move.spec and move.status == OK else move for move in moves
        ]

    def _status(self, price: float, target: float) -> str:
        return OK if self.near(price, target) else OFF_TARGET


def _off(price: float, target: float) -> float:
    return abs(math.log(price / target))


def _error(one: Worth, other: Worth) -> float:
    """What two accuracies may differ by and still count as equal."""
    return max(one.standard_error, other.standard_error)


def _check(base: Specification, ratio: float, tol: float) -> None:
    if not 1 < ratio < math.inf:
        raise SettingError(f"ratio {ratio:g} must be above 1: each step costs that many times the one before.")
    if not 0 < tol < 0.5:
        raise SettingError(f"tol {tol:g} must be between 0 and 0.5.")
    if base.head_dim % CHANNELS:
        logging.getLogger("anyvit").warning(
            "heads of the base are %d wide, not a multiple of %d: that is slow on many devices", base.head_dim, CHANNELS
        )


def _begun(base: Specification, budget: float, ratio: float, tol: float, trace: Trace | None, search: _Search) -> Trace:
    """The trace to go on with: one that got stuck may go on from before its last step."""
    if trace is not None:
        if trace.base != base:
            raise SettingError(f"the trace begins at {name_of(trace.base)}, not at {name_of(base)}: start a new one.")
        steps = trace.steps[:-1] if trace.stuck else trace.steps
        return replace(trace, budget=budget, ratio=ratio, tol=tol, steps=steps)
    search.time([base])
    price = search.priced(base)
    if not price <= budget < math.inf:
        raise BudgetError(
            f"the base {name_of(base)} costs {price:.4g}, which is above the budget of {budget:.4g}. "
            f"Start from a smaller shape."
        )
    return Trace(base, price, budget, ratio, tol)


def _how_far(trace: Trace) -> Event:
    whole = math.log(trace.budget / trace.base_cost)
    done = math.log(trace.cost / trace.base_cost) / whole if whole > 0 else 1.0
    return Event("design", f"{name_of(trace.final)}, {trace.cost:.4g} of {trace.budget:.4g}", min(max(done, 0.0), 1.0))
