"""What a scaling search has learned, as one exponent a factor: applied to other bases, budgets and devices."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from anyvit.costs.counts import Specification
from anyvit.errors import SettingError
from anyvit.scaling.design.factors import FACTORS, Limits, rounded, scaled
from anyvit.scaling.design.trace import Trace

Shape = TypeVar("Shape")

DEEPEST = 96
MOST_OFF = 0.10
SHORT_SIDE = 32


@dataclass(frozen=True, slots=True)
class Applied(Generic[Shape]):
    """The shape that a strategy gives, and how far its cost is from what was asked for."""

    spec: Shape
    cost: float
    relative_error: float  # cost / target - 1


@dataclass(frozen=True)
class Strategy:
    """How much of a growing budget goes where: a factor grows by the growth of the cost to the power of its exponent.

    Args:
        exponents: By factor; that of the patch size is not above 0.
        choices: What each step of the search chose; the order matters to readers.
        conditions: What the search saw: the cost's name, device, backend, batch, threads. Plain data. A strategy of
            another batch is another strategy.
    """

    exponents: Mapping[str, float]
    choices: tuple[str, ...] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: Trace, conditions: Mapping[str, Any] | None = None) -> Strategy:
        """The strategy of a path: per factor, ln(final / base) over ln(cost of final / cost of base).

        Raises:
            SettingError: The path has no step, or its end is no dearer than its beginning.
        """
        if not trace.cost > trace.base_cost:
            raise SettingError("a path that does not grow holds no strategy: search with a larger budget.")
        growth = math.log(trace.cost / trace.base_cost)
        before, after = asdict(trace.base), asdict(trace.final)
        exponents = {factor: math.log(after[factor] / before[factor]) / growth for factor in FACTORS}
        choices = tuple(step.chosen for step in trace.steps if step.chosen)
        return cls(exponents, choices, dict(conditions or {}))

    def factors(self, growth: float) -> dict[str, float]:
        """What each factor is multiplied by where the cost is.

        Raises:
            SettingError: The growth is not above 0, as where a target is not.
        """
        if not 0 < growth < math.inf:
            raise SettingError(f"a cost grows by what is above 0 and finite, not by {growth:g}: check the target.")
        return {factor: growth**exponent for factor, exponent in self.exponents.items()}

    def apply(
        self,
        base: Specification,
        target: float,
        cost: Callable[[Specification], float],
        *,
        patch_sizes: Sequence[int] = Limits().patch_sizes,
    ) -> Applied[Specification]:
        """Scale another base to a target; what rounding has lost is made good by depth alone.

        Args:
            base: What is scaled.
            target: In the unit of the cost, above or below that of the base.
            cost: Of a shape: on any device, of any tool.
            patch_sizes: Those that may be.

        Raises:
            SettingError: The target is not above 0.
        """
        shape = scaled(base, self.factors(target / cost(base)), patch_sizes)
        depths = [Specification(**{**asdict(shape), "depth": depth}) for depth in range(1, DEEPEST + 1)]
        return nearest(depths, cost, target)

    def short_side(self, pixels: int, growth: float) -> int:
        """The short side of a detector's images, a multiple of 32, where its backbone's cost grows so many times."""
        return rounded(pixels * self.factors(growth)["image_size"], SHORT_SIDE)

    def __str__(self) -> str:
        parts = [f"{factor} {exponent:+.3f}" for factor, exponent in self.exponents.items() if exponent]
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "exponents": dict(self.exponents),
            "choices": list(self.choices),
            "conditions": dict(self.conditions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Strategy:
        """What `to_json` has written.

        Raises:
            SettingError: A factor is missing, or unknown.
        """
        exponents = data.get("exponents", {})
        if exponents.keys() != set(FACTORS):
            raise SettingError(f"a strategy has an exponent for each of {', '.join(FACTORS)}, not for {[*exponents]}.")
        return cls(exponents, tuple(data["choices"]), data["conditions"])


def nearest(deeper: Sequence[Shape], cost: Callable[[Shape], float], target: float) -> Applied[Shape]:
    """The shape whose cost is nearest to the target in proportion, the first of two; a warning where that is not near.

    Args:
        deeper: Each costs more than the one before, so few of them are priced.
        cost: Of a shape.
        target: In the unit of the cost.
    """
    above = bisect_left(deeper, target, key=cost)
    costs = {place: cost(deeper[place]) for place in (above - 1, above) if 0 <= place < len(deeper)}
    place = min(costs, key=lambda place: abs(math.log(costs[place] / target)))
    found = Applied(deeper[place], costs[place], costs[place] / target - 1)
    if abs(found.relative_error) > MOST_OFF:
        logging.getLogger("anyvit").warning(
            "the strategy's shape costs %.4g, which misses the target of %.4g by %+.0f%%",
            *(found.cost, target, 100 * found.relative_error),
        )
    return found
