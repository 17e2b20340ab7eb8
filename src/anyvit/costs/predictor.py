"""What a shape probably takes, learned from a few dozen that were measured: hundreds then cost nothing.

The time of a plain ViT is close to a sum: so much a call, so much a block, so much for each kind of product. Weights
that are not negative make it a sum that can be read; small trees correct what it leaves, where that helps. How far a
predictor is off is told by shapes that it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from scipy.optimize import nnls
from scipy.stats import kendalltau, spearmanr
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.model_selection import KFold

from anyvit.costs.counts import Specification
from anyvit.errors import SettingError

LEAST_SHAPES = 30
MOST_ERROR = 0.10
LEAST_TAU = 0.9
FOLDS = 5


class Predictor(Protocol):
    """Tells the seconds of a call from the shape alone."""

    def __call__(self, spec: Specification, /) -> float: ...


def terms(spec: Specification) -> np.ndarray:
    """What a call of this shape is made of, (8,).

    1, blocks, then 1e9 multiply-accumulates of the patches, of the projections, of attention and of the MLPs, 1e6
    elements of attention maps, and 1e6 channels of tokens over all blocks.
    """
    L, D, N, T = spec.depth, spec.embed_dim, spec.num_patches, spec.num_patches + 1
    products = (
        N * D * spec.in_chans * spec.patch_size**2,
        L * 4 * T * D * D,
        L * 2 * T * T * D,
        L * 2 * T * D * spec.hidden_dim,
    )
    elements = (L * T * T * spec.heads, L * T * D)
    return np.array([1.0, L, *(1e-9 * macs for macs in products), *(1e-6 * count for count in elements)])


def fit_terms(features: np.ndarray, latencies: np.ndarray) -> np.ndarray:
    """The weights w >= 0 (8,) that minimize sum((x.w / y - 1)^2): every shape counts alike, however slow.

    Args:
        features: `terms` of the shapes, (n, 8).
        latencies: What they take, (n,), in any unit.
    """
    weights, _ = nnls(features / latencies[:, None], np.ones(len(latencies)))
    return np.asarray(weights)


@dataclass(frozen=True, slots=True)
class LinearPredictor:
    """A weighted sum of `terms`: seconds."""

    weights: tuple[float, ...]

    @classmethod
    def fit(cls, specs: Sequence[Specification], latencies: Sequence[float]) -> LinearPredictor:
        features = np.stack([terms(spec) for spec in specs])
        return cls(tuple(fit_terms(features, np.asarray(latencies, dtype=float)).tolist()))

    def __call__(self, spec: Specification, /) -> float:
        return float(terms(spec) @ np.array(self.weights))

    def to_json(self) -> dict[str, Any]:
        return {"weights": list(self.weights)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LinearPredictor:
        return cls(tuple(data["weights"]))


class BoostedPredictor:
    """The weighted sum, corrected by small trees: steps that follow from a width or a number of tokens.

    A tree cannot go on beyond the shapes that it has seen; the sum can, and the correction stays what it was there.
    """

    def __init__(self, linear: LinearPredictor, trees: GradientBoostingRegressor) -> None:
        self._linear, self._trees = linear, trees

    @classmethod
    def fit(cls, specs: Sequence[Specification], latencies: Sequence[float]) -> BoostedPredictor:
        linear = LinearPredictor.fit(specs, latencies)
        left = np.log([seconds / linear(spec) for spec, seconds in zip(specs, latencies, strict=True)])
        trees = GradientBoostingRegressor(
            n_estimators=200, learning_rate=0.03, max_depth=2, min_samples_leaf=3, subsample=0.7, random_state=0
        )
        return cls(linear, trees.fit(np.stack([_traits(spec) for spec in specs]), left))

    def __call__(self, spec: Specification, /) -> float:
        return self._linear(spec) * math.exp(self._trees.predict(_traits(spec)[None])[0])


def _traits(spec: Specification) -> np.ndarray:
    return np.concatenate([np.log(terms(spec)[1:]), list(asdict(spec).values())])


KINDS: Mapping[str, Callable[[Sequence[Specification], Sequence[float]], Predictor]] = {
    "a sum of terms": LinearPredictor.fit,
    "a sum of terms with boosted trees": BoostedPredictor.fit,
}


@dataclass(frozen=True, slots=True)
class PredictorError:
    """How far a predictor is off on shapes that it was not fitted to."""

    kind: str
    count: int
    mape: float  # mean of |predicted / measured - 1|
    median: float  # of the same
    tau: float  # Kendall's, of predicted and measured
    rank_correlation: float  # Spearman's

    @property
    def usable(self) -> bool:
        """Whether a search may trust it: at most 10 % off on average, and tau at least 0.9."""
        return self.mape <= MOST_ERROR and self.tau >= LEAST_TAU

    def __str__(self) -> str:
        verdict = "" if self.usable else ": too far off for a search, measure instead"
        return (
            f"{self.kind} is off by {self.mape:.1%} on average and {self.median:.1%} in the median on {self.count} "
            f"held-out shapes (Kendall's tau {self.tau:.3f}, rank correlation {self.rank_correlation:.3f}){verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "usable": self.usable}

    @classmethod
    def of(
        cls, kind: str, predictor: Predictor, specs: Sequence[Specification], latencies: Sequence[float]
    ) -> PredictorError:
        """What `predictor` makes of shapes whose latencies are known."""
        predicted = np.array([predictor(spec) for spec in specs])
        off = np.abs(predicted / np.asarray(latencies) - 1)
        tau, rank = kendalltau(predicted, latencies).statistic, spearmanr(predicted, latencies).statistic
        return cls(kind, len(specs), float(off.mean()), float(np.median(off)), float(tau), float(rank))


def fit_predictor(
    specs: Sequence[Specification], latencies: Sequence[float], *, held_out: float = 0.2, seed: int = 0
) -> tuple[Predictor, PredictorError]:
    """The predictor that does better on what it has not seen, fitted to all shapes, and how far such a one is off.

    Part of the shapes is held out to tell the error. Which kind is better is told by cross-validation among the others,
    so what is held out chooses nothing.

    Args:
        specs: Shapes, spread over the factors (`latin_hypercube`).
        latencies: What each takes, in seconds.
        held_out: The share of shapes that tell the error.
        seed: Draws them.

    Raises:
        SettingError: Fewer than 30 shapes, a latency that is not above 0, or `held_out` is not in (0, 0.5].
    """
    if len(specs) < LEAST_SHAPES:
        raise SettingError(
            f"a predictor needs at least {LEAST_SHAPES} measured shapes, not {len(specs)}. "
            f"Measure {LEAST_SHAPES - len(specs)} more."
        )
    if not 0 < held_out <= 0.5:
        raise SettingError(f"held_out {held_out} must be a share above 0 and up to 0.5")
    for spec, seconds in zip(specs, latencies, strict=True):
        if not 0 < seconds < math.inf:
            raise SettingError(f"a latency must be above 0 and finite, not {seconds} of {spec}")
    order = np.random.default_rng(seed).permutation(len(specs)).tolist()
    count = math.ceil(held_out * len(specs))
    seen, unseen = _only(order[count:], specs, latencies), _only(order[:count], specs, latencies)
    kind = min(KINDS, key=lambda kind: _cross_validated(kind, *seen, seed))
    return KINDS[kind](specs, latencies), PredictorError.of(kind, KINDS[kind](*seen), *unseen)


def _only(
    places: Sequence[int], specs: Sequence[Specification], latencies: Sequence[float]
) -> tuple[list[Specification], list[float]]:
    return [specs[place] for place in places], [latencies[place] for place in places]


def _cross_validated(kind: str, specs: Sequence[Specification], latencies: Sequence[float], seed: int) -> float:
    """The mean error over folds that were left out in turn."""
    errors = []
    for rest, fold in KFold(FOLDS, shuffle=True, random_state=seed).split(specs):
        predictor = KINDS[kind](*_only(rest, specs, latencies))
        errors.append(PredictorError.of(kind, predictor, *_only(fold, specs, latencies)).mape)
    return float(np.mean(errors))
