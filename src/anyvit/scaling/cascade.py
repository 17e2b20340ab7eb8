"""A small candidate answers first, a large one only where the small one is unsure: a branch on the data.

Our own addition, from no paper. The idea is that of early exits and of cascades of a little and a big network. It is no
lever: a branch on the data is lost in export, and its threshold needs labels. Everything but the runner follows from
answers and figures of plain candidates that are there already, so a cascade costs the search no image more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anyvit.costs.budget import Budget
from anyvit.costs.counts import count_params_together
from anyvit.protocols import Runner
from anyvit.scaling.candidate import Candidate, Cascade, Result
from anyvit.scaling.search import margin_of, pareto, within

if TYPE_CHECKING:
    from torch import Tensor, nn

NEVER, ALWAYS = 0.0, 2.0
"""Thresholds that let no image go on to the large candidate, and all: a confidence is above 0 and at most 1."""

DROPS = (0.0, 0.005, 0.01)
"""How much less accurate than its large candidate alone a cascade may be."""

MOST = 6
"""Cascades that are offered, at most."""

Shape = Callable[[Candidate], "nn.Module"]


@dataclass(frozen=True, slots=True)
class CascadeRunner:
    """Asks `small` about all images, and `large` about those where the largest probability is below `threshold`."""

    small: Runner
    large: Runner
    threshold: float

    def __call__(self, images: Tensor, /) -> Tensor:
        return self.answer(images)[0]

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (B, K), and which images went on to `large` (B,)."""
        probabilities = self.small(images)
        unsure = probabilities.amax(1).double() < self.threshold  # in float32 the threshold would be rounded
        if unsure.any():
            probabilities = probabilities.clone()
            probabilities[unsure] = self.large(images[unsure.to(images.device)]).to(probabilities)
        return probabilities, unsure


def assemble(candidate: Candidate | Cascade, build: Callable[[Candidate], Runner]) -> Runner:
    """The runner of a candidate, or of a cascade over the runners that `build` makes of its parts."""
    if isinstance(candidate, Cascade):
        return CascadeRunner(build(candidate.small), build(candidate.large), candidate.threshold)
    return build(candidate)


def extremes(runner: Runner) -> tuple[Runner, Runner]:
    """A runner as it is where no image goes on, and where all do. Without a cascade both are the runner itself."""
    if isinstance(runner, CascadeRunner):
        return replace(runner, threshold=NEVER), replace(runner, threshold=ALWAYS)
    return runner, runner


@dataclass(frozen=True, slots=True)
class Marks:
    """How sure a candidate was of each of N images, and whether it was right."""

    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]

    @classmethod
    def of(cls, probabilities: NDArray[Any], labels: NDArray[Any]) -> Marks:
        """Those of the answers (N, K) about images of these classes (N,)."""
        return cls(probabilities.max(1).astype(np.float64), probabilities.argmax(1) == labels)

    def __getitem__(self, images: NDArray[np.int64]) -> Marks:
        return Marks(self.confidence[images], self.right[images])


@dataclass(frozen=True, slots=True)
class Curve:
    """What becomes of labelled images at every threshold that makes a difference, from NEVER, rising, to ALWAYS."""

    thresholds: NDArray[np.float64]
    shares: NDArray[np.float64]  # of the images that go on
    accuracies: NDArray[np.float64]

    @classmethod
    def of(cls, small: Marks, large: Marks) -> Curve:
        """That of two candidates, by their marks for the same images, of which there is one or more.

        A threshold lies between the confidences of two images and is the shortest decimal there.
        """
        order = np.argsort(small.confidence, kind="stable")
        rising = small.confidence[order]
        gains = np.concatenate([[0], np.cumsum(large.right[order].astype(int) - small.right[order])])
        cuts = 1 + np.flatnonzero(rising[:-1] < rising[1:])  # images that go on: equally sure ones together
        going = np.concatenate([[0], cuts, [len(order)]])
        thresholds = np.concatenate([[NEVER], _shortest_between(rising[cuts - 1], rising[cuts]), [ALWAYS]])
        return cls(thresholds, going / len(order), (small.right.sum() + gains[going]) / len(order))


def calibrate(
    small: Marks, large: Marks, *, drops: Sequence[float] = DROPS, highest: float | None = None
) -> tuple[float, ...]:
    """Thresholds by how two candidates did on the same labelled images.

    Args:
        small: The marks of the faster one.
        large: Those of the other one.
        drops: For each, the lowest threshold that is at most so much less accurate than `large` alone.
        highest: Where given, the most accurate threshold up to this one comes last; of equals the lowest.
    """
    curve = Curve.of(small, large)
    wanted = [curve.accuracies >= curve.accuracies[-1] - drop - 1e-9 for drop in drops]
    if highest is not None:
        allowed = np.where(curve.thresholds <= highest, curve.accuracies, -1.0)
        wanted.append(allowed == allowed.max())
    return tuple(float(curve.thresholds[good.argmax()]) for good in wanted)


def cascades(
    results: Sequence[Result],
    probabilities: Mapping[str, NDArray[Any]],
    labels: NDArray[Any],
    budget: Budget,
    shape: Shape,
) -> list[Result]:
    """The useful cascades of scored candidates, from what these answered: no image is run again.

    Thresholds are calibrated on one half of the images; on the other half a cascade is compared with its large
    candidate alone, and its accuracy is that one's on all images, changed by the difference. How many images go on is
    told by all of them, because no label has a part in it.

    Args:
        results: Plain candidates with their costs and accuracies.
        probabilities: By id, their answers (N, K) about the validation images.
        labels: The truth (N,).
        budget: What is asked; where it bounds `latency_expected`, thresholds are fitted to that too.
        shape: The module of a candidate: parameters that both parts of a cascade hold are counted once.

    Returns:
        At most `MOST`, by rising expected latency: those that no result beats in that and in accuracy; of what keeps
        the budget, where anything does.
    """
    if len(labels) < 2:
        return []
    calibration, held_out = np.array_split(np.random.default_rng(0).permutation(len(labels)), 2)
    together = cache(count_params_together)
    marks = {id: Marks.of(answers, labels) for id, answers in probabilities.items()}
    found: list[Result] = []
    for small, large in permutations([result for result in results if result.id in marks], 2):
        faster = small.costs["latency"] < large.costs["latency"]
        if faster and (small.accuracy or 0.0) <= (large.accuracy or 0.0):  # otherwise chance alone would speak for it
            pair = _Pair(small, large, marks[small.id], marks[large.id])
            params = together(shape(small.plain), shape(large.plain))
            tried = (pair.result(threshold, held_out, params) for threshold in pair.thresholds(budget, calibration))
            found += [result for result in tried if 0 < result.escalated < 1]
    everything = [*results, *found]
    inside = [result for result in everything if within(result, budget)] or everything
    new = {result.id for result in found}
    return [result for result in pareto(inside, "latency_expected") if result.id in new][-MOST:]


def anew(result: Result, priced: Mapping[str, Result], shape: Shape) -> Result:
    """A result of which all parts were priced again, with their figures; accuracy and share are as before.

    Args:
        result: Of a plain candidate or of a cascade.
        priced: The plain ones by id.
        shape: As in `cascades`.
    """
    parts = [priced[part.id] for part in result.candidate.parts]
    if len(parts) == 1:
        return replace(parts[0], accuracy=result.accuracy)
    params = count_params_together(*(shape(part.plain) for part in parts))
    costs = _costs(parts[0].costs, parts[1].costs, result.escalated, params)
    return replace(result, costs=costs, unstable=any(part.unstable for part in parts))


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two scored candidates, and their marks for the validation images."""

    small: Result
    large: Result
    marks: Marks
    large_marks: Marks

    def thresholds(self, budget: Budget, images: NDArray[np.int64]) -> tuple[float, ...]:
        """Those worth trying, each once, calibrated on `images`."""
        found = calibrate(self.marks[images], self.large_marks[images], highest=self._highest(budget))
        return tuple(dict.fromkeys(found))

    def _highest(self, budget: Budget) -> float | None:
        """The highest threshold that keeps a bound on the expected latency. None: there is no bound, or none does."""
        bound = next((bound for bound in budget.bounds if bound.cost == "latency_expected"), None)
        left = bound.value / margin_of(bound.cost) - self.small.costs["latency"] if bound else -1.0
        if left < 0:
            return None
        confidence = np.sort(self.marks.confidence)
        may_go_on = len(confidence) * min(1.0, left / self.large.costs["latency"])
        return float(confidence[int(may_go_on - 1e-6)])  # a little below, so that rounding does not miss the bound

    def result(self, threshold: float, held_out: NDArray[np.int64], params: int) -> Result:
        """The cascade at a threshold, with its accuracy estimated on the images `held_out` from calibration."""
        goes_on, alone = self.marks.confidence < threshold, self.large_marks.right
        right = np.where(goes_on, alone, self.marks.right)
        share = float(goes_on.mean())
        return Result(
            Cascade(self.small.plain, self.large.plain, threshold),
            _costs(self.small.costs, self.large.costs, share, params),
            accuracy=float(np.clip(alone.mean() + right[held_out].mean() - alone[held_out].mean(), 0, 1)),
            unstable=self.small.unstable or self.large.unstable,
            escalated=share,
        )


def _costs(small: Mapping[str, float], large: Mapping[str, float], share: float, params: int) -> dict[str, float]:
    """What a cascade costs where every image goes on; only `latency_expected` is that of the share which does."""
    costs = {cost: small[cost] + large[cost] for cost in small if cost in large}
    costs["params"] = params
    costs["latency_expected"] = small["latency"] + share * large["latency"]
    if "throughput" in costs:
        costs["throughput"] = 1 / (1 / small["throughput"] + 1 / large["throughput"])
    if "latency_e2e" in costs:
        costs["latency_e2e"] = small["latency_e2e"] + large["latency"]  # the image is read once
    return costs


def _shortest_between(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each pair the decimal of the fewest digits that is above `low` and at most `high`."""
    shortest, middle = high, (low + high) / 2
    for digits in range(16, 0, -1):
        rounded = np.round(middle, digits)
        shortest = np.where((low < rounded) & (rounded <= high), rounded, shortest)
    return shortest
