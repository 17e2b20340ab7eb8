"""Whether what was found on one device holds on another.

It depends on the device together with its tool, so it is measured, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from anyvit.costs.counts import Specification
from anyvit.errors import SettingError
from anyvit.scaling.design.scaling import Cost, Evaluate
from anyvit.scaling.design.shape import Worth, name_of
from anyvit.scaling.design.strategy import MOST_OFF, Applied, Strategy
from anyvit.scaling.design.trace import Trace, Trained

LEAST_SHAPES = 6
LEAST_TAU = 0.8


def remembering(evaluate: Evaluate, known: Mapping[Specification, Worth]) -> Evaluate:
    """`evaluate`, which is not asked for what is known: a search on another device trains only what is new to it."""
    return lambda spec: known[spec] if spec in known else evaluate(spec)


def recost(trace: Trace, cost: Cost) -> list[Trained]:
    """Every shape that a search has evaluated, with what it costs elsewhere, the cheapest first. Nothing is trained."""
    trained = [Trained(spec, cost(spec), accuracy) for spec, accuracy in trace.accuracies.items()]
    return sorted(trained, key=lambda one: one.cost)


def best_within(trained: list[Trained], budget: float) -> Trained | None:
    """The most accurate one that a budget holds, the cheaper of two; None where it holds none."""
    inside = [one for one in trained if one.cost <= budget]
    return min(inside, key=lambda one: (-one.accuracy.value, one.cost), default=None)


@dataclass(frozen=True, slots=True)
class Row:
    """A shape of the path, and what it costs there and here."""

    spec: Specification
    there: float  # where the strategy was found
    here: float  # where it is to be used
    predicted: float | None = None  # for here


@dataclass(frozen=True, slots=True)
class TransferReport:
    """What a strategy found there is worth here."""

    rows: tuple[Row, ...]
    tau: float  # Kendall's, of the costs there and here
    budget: float
    applied: Applied[Specification]  # the transferred shape, with its cost here
    accuracy: float | None  # of the transferred shape, where it is known
    best: Trained | None  # of the shapes evaluated already the best within the budget here

    @property
    def recommended(self) -> bool:
        """Whether the strategy may be used as it is."""
        return self.tau >= LEAST_TAU and abs(self.applied.relative_error) <= MOST_OFF

    @property
    def regret(self) -> float | None:
        """The accuracy of the best shape here less that of the transferred one, where both are known."""
        if self.best is None or self.accuracy is None:
            return None
        return self.best.accuracy.value - self.accuracy

    @property
    def prediction_error(self) -> float | None:
        """The mean of |predicted / measured - 1| over the rows, where there are predictions."""
        errors = [abs(row.predicted / row.here - 1) for row in self.rows if row.predicted is not None]
        return float(np.mean(errors)) if errors else None

    @property
    def words(self) -> str:
        """The advice, with its reasons."""
        parts = [
            f"Kendall's tau of the costs of {len(self.rows)} shapes there and here is {self.tau:.2f}",
            f"the transferred shape {name_of(self.applied.spec)} costs {self.applied.cost:.4g}, "
            f"{self.applied.relative_error:+.1%} from the budget of {self.budget:.4g}",
        ]
        if self.prediction_error is not None:
            parts.append(f"predictions for here are off by {self.prediction_error:.1%} on average")
        if self.regret is not None and self.best is not None:
            parts.append(
                f"the best evaluated before, {name_of(self.best.spec)}, is worth {self.regret:+.4g} against it"
            )
        else:
            parts.append("what it is worth against those evaluated before is not known")
        advice = "Use the strategy." if self.recommended else _SEARCH_AGAIN
        return f"{'; '.join(parts)}. {advice}"

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "recommended": self.recommended,
            "regret": self.regret,
            "prediction_error": self.prediction_error,
            "words": self.words,
        }


_SEARCH_AGAIN = "Search here again: what was evaluated there need not be trained again."


def check_transfer(
    trace: Trace,
    budget: float,
    cost: Cost,
    *,
    predict: Cost | None = None,
    evaluate: Callable[[Specification], Worth | float] | None = None,
    there: Mapping[Specification, float] | None = None,
) -> TransferReport:
    """Apply the strategy of a search made elsewhere to a budget here, and say whether to.

    Args:
        trace: Of the search; its costs are those of the other device.
        budget: Here.
        cost: Of a shape here, measured. Measure the shapes of the path together before, that they are comparable.
        predict: The same, predicted, which the transferred shape is then found by.
        evaluate: Tells what the transferred shape is worth. None: known where the search has evaluated it.
        there: Costs of shapes on the other device, where the path has fewer than six.

    Raises:
        SettingError: Fewer than six shapes, or the path does not grow.
    """
    path = {**dict(trace.path), **(there or {})}
    if len(path) < LEAST_SHAPES:
        raise SettingError(
            f"a transfer is judged by at least {LEAST_SHAPES} shapes along the path, not {len(path)}: search with a "
            f"smaller ratio, or give the costs of more shapes there."
        )
    rows = tuple(Row(spec, price, cost(spec), predict and predict(spec)) for spec, price in path.items())
    found = Strategy.of(trace).apply(trace.base, budget, predict or cost)
    price = cost(found.spec)
    known = trace.accuracies
    worth = remembering(evaluate, known)(found.spec) if evaluate else known.get(found.spec)
    return TransferReport(
        rows=rows,
        tau=float(kendalltau([row.there for row in rows], [row.here for row in rows]).statistic),
        budget=budget,
        applied=Applied(found.spec, price, price / budget - 1),
        accuracy=worth.value if isinstance(worth, Worth) else worth,
        best=best_within(recost(trace, cost), budget),
    )
