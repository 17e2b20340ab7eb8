"""Which candidates are worth measuring next, told from those that are: it ranks, and promises nothing.

The logarithm of a cost is close to a sum: what each lever takes away, times what the runtime makes of it. So is what
accuracy loses, on the scale of log odds. Two Bayesian linear models over the choices and the multiply-accumulates
learn these sums from a dozen measurements, and say how sure they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import BayesianRidge

from anyvit.scaling.candidate import Candidate, Result

OPTIMISM = 2.0
"""Standard errors that a candidate may well be better than what is likely: so much is tried before a search ends."""

_LEAST = 0.005  # accuracies count as at least this far from 0 and 1, where log odds are infinite


@dataclass(frozen=True, slots=True)
class Guess:
    """What a candidate probably costs and is worth: a likely value, and one as good as it may well be."""

    cost: float
    best_cost: float
    accuracy: float
    best_accuracy: float


class Ranker:
    """Learns from measured results what others probably cost.

    Args:
        results: Measured, with accuracy.
        cost: The name of the cost, in the budget language. Anything that is above 0.
        macs: The multiply-accumulates of any candidate.
    """

    def __init__(self, results: Sequence[Result], cost: str, macs: Callable[[Candidate], float]) -> None:
        self._macs = macs
        self._rising = -1.0 if cost == "throughput" else 1.0  # whether more is worse
        self._columns: dict[str, int] = {}
        for result in results:
            for name in self._names(result.plain):
                self._columns.setdefault(name, len(self._columns))
        candidates = [result.plain for result in results]
        inputs = self._inputs(candidates)
        self._cost = BayesianRidge().fit(inputs, np.log([result.costs[cost] for result in results]))
        self._accuracy = BayesianRidge().fit(inputs, _odds([result.accuracy or 0.0 for result in results]))

    def guesses(self, candidates: Sequence[Candidate]) -> Mapping[str, Guess]:
        """A guess for each candidate, by id."""
        if not candidates:
            return {}
        inputs = self._inputs(candidates)
        costs, cost_errors = self._cost.predict(inputs, return_std=True)
        odds, odds_errors = self._accuracy.predict(inputs, return_std=True)
        likely = zip(np.exp(costs), np.exp(costs - self._rising * OPTIMISM * cost_errors), strict=True)
        worth = zip(_shares(odds), _shares(odds + OPTIMISM * odds_errors), strict=True)
        guesses = (Guess(*map(float, (*cost, *accuracy))) for cost, accuracy in zip(likely, worth, strict=True))
        return {candidate.id: guess for candidate, guess in zip(candidates, guesses, strict=True)}

    def _names(self, candidate: Candidate) -> list[str]:
        return [str((step.name, dict(step.setting))) for step in (*candidate.active, candidate.backend)]

    def _inputs(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """A row a candidate: its choices as ones, and the logarithm of its multiply-accumulates."""
        rows = np.zeros((len(candidates), len(self._columns) + 1))
        for row, candidate in zip(rows, candidates, strict=True):
            row[-1] = np.log(self._macs(candidate))
            for name in self._names(candidate):
                if name in self._columns:  # what was never measured counts by its multiply-accumulates alone
                    row[self._columns[name]] = 1.0
        return rows


def _odds(accuracies: Sequence[float]) -> np.ndarray:
    shares = np.clip(accuracies, _LEAST, 1 - _LEAST)
    return np.log(shares / (1 - shares))


def _shares(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))
