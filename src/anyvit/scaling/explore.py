"""Which candidates to measure, where there are too many to measure all.

First the unshrunk model on each runtime, for a lever counts only where it gains on the same one. Then each lever alone
on the best of them. From these a ranker guesses the rest, and what may well be better than the best known is measured,
a few at a time, until nothing promises to be, or the time is over, or a quarter of all is measured, or enough. Where
there are too many to rank one by one, NSGA-II picks those to look at by the ranker's guesses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import optuna

from anyvit.costs.budget import Budget
from anyvit.protocols import UNCHANGED, Event, Progress, silent
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.hope import hope_for
from anyvit.scaling.pricing import count
from anyvit.scaling.ranker import Ranker
from anyvit.scaling.search import best, pareto, primary_cost
from anyvit.scaling.space import Space
from anyvit.scaling.trials import Trials

FEW = 12
"""So many candidates are all measured."""

ENOUGH = 48
"""So many are measured at most: a quarter of an hour for a small model."""

ENUMERABLE = 5000
"""So many are ranked one by one; beyond, NSGA-II proposes."""

_SHARE = 1 / 4  # of the candidates, measured at most
_BATCH = 4  # candidates timed together
_GAIN = 0.005  # accuracy that must be hoped for
_PROPOSING = 600  # guesses of NSGA-II, which take a second or two


class Explorer:
    """Measures the candidates of a space that are worth it under a budget.

    Args:
        space: All candidates. The first one is the reference of `trials`.
        trials: Measures them, and holds what was measured before.
        budget: What they are for.
        seed: Of NSGA-II's choices.
        out_of_time: Asked before each batch; True ends the search with what there is.
        progress: Called with news.
    """

    def __init__(
        self,
        space: Space,
        trials: Trials,
        budget: Budget,
        *,
        seed: int = 0,
        out_of_time: Callable[[], bool] = lambda: False,
        progress: Progress = silent,
    ) -> None:
        self.space, self.trials, self.budget, self.seed = space, trials, budget, seed
        self._out_of_time, self._progress = out_of_time, progress
        self._unchanged = tuple(Step(lever.name, UNCHANGED) for lever in space.levers)
        self._last_look = False
        self._costs = [bound.cost for bound in budget.cost_bounds()] or [primary_cost(budget)]

    def run(self) -> list[Result]:
        """All results that were measured, the reference first."""
        self.trials.measure([self.trials.reference])  # whatever the time: the others are held against it
        self._measure(self._runtimes())
        self._measure(self._singles())
        while batch := self._promising():
            self._measure(batch)
        return self._results

    @cached_property
    def size(self) -> int:
        """How many legal candidates there are; of very many, how many combinations."""
        return self.space.size if self._all is None else len(self._all)

    @cached_property
    def allowed(self) -> int:
        """How many may be measured."""
        return self.size if self.size <= FEW else max(FEW, min(ENOUGH, math.ceil(self.size * _SHARE)))

    @cached_property
    def _all(self) -> list[Candidate] | None:
        return None if self.space.size > ENUMERABLE else list(self.space)

    @property
    def _results(self) -> list[Result]:
        return list(self.trials.results.values())

    @property
    def _left(self) -> int:
        done = len(self.trials.results) + len(self.trials.failures)
        return 0 if self._out_of_time() else self.allowed - done

    def _measure(self, wanted: Sequence[Candidate]) -> None:
        fresh = [candidate for candidate in wanted if not self._known(candidate)]
        for start in range(0, len(fresh), _BATCH):
            left = self._left
            if left <= 0:
                break
            done = len(self.trials.results)
            self._progress(Event("search", f"{done} of at most {self.allowed} measured", done=done / self.allowed))
            self.trials.measure(fresh[start : start + min(_BATCH, left)])
            self.trials.workshop.release([result.id for result in self._front()])

    def _known(self, candidate: Candidate) -> bool:
        return candidate.id in self.trials.results or candidate.id in self.trials.failures

    def _front(self) -> list[Result]:
        return pareto(self._results, self._costs[0])

    def _runtimes(self) -> list[Candidate]:
        """The unshrunk model on each runtime: the most exact precision of each backend first, then the others."""
        by_backend: dict[str, list[Step]] = {}
        for step in self.space.choices[-1]:
            by_backend.setdefault(step.name, []).append(step)
        most = max(map(len, by_backend.values()))
        turns = [steps[turn] for turn in range(most) for steps in by_backend.values() if turn < len(steps)]
        affordable = turns if self.size <= FEW else turns[: max(1, self.allowed // 2)]
        return [self.trials.reference, *(Candidate(self._unchanged, step) for step in affordable)]

    def _singles(self) -> list[Candidate]:
        """Each lever alone on the best runtime so far: its strongest setting and one in the middle, then the others."""
        runtime = self._best_runtime()
        alone = []
        for place, steps in enumerate(self.space.choices[:-1]):
            order = [len(steps) - 1, len(steps) // 2, *range(1, len(steps))]
            alone.append([self._single(place, step, runtime) for step in dict.fromkeys(order) if step > 0])
        most = max(map(len, alone), default=0)
        turns = [candidates[turn] for turn in range(most) for candidates in alone if turn < len(candidates)]
        return turns if self.size <= FEW else turns[: max(self._left // 2, 1)]

    def _single(self, place: int, step: int, runtime: Step) -> Candidate:
        steps = list(self._unchanged)
        steps[place] = self.space.choices[place][step]
        return Candidate(tuple(steps), runtime)

    def _best_runtime(self) -> Step:
        """That of the best unshrunk candidate in the first cost, of those that are as exact as the reference."""
        reference = self.trials.results[self.trials.reference.id]
        unshrunk = [result for result in self._results if not result.plain.active]
        exact = [r for r in unshrunk if (r.accuracy or 0.0) >= (reference.accuracy or 0.0) - 0.02]
        return best(exact or [reference], self._costs[0]).plain.backend

    def _promising(self) -> list[Candidate]:
        """The next candidates to measure; none where nothing promises to be better than what is known."""
        if self._left <= 0:
            return []
        if self.size <= FEW:
            return [candidate for candidate in self.space if not self._known(candidate)]
        rankers = {cost: Ranker(self._results, cost, self._macs) for cost in self._costs}
        pool = [candidate for candidate in self._pool(rankers) if not self._known(candidate)]
        guesses = {cost: ranker.guesses(pool) for cost, ranker in rankers.items()}
        hope = hope_for(self.budget, self._results)
        hopes = {c.id: hope({cost: guessed[c.id] for cost, guessed in guesses.items()}) for c in pool}
        ranked = sorted(pool, key=lambda candidate: -hopes[candidate.id])
        hopeful = [candidate for candidate in ranked if hopes[candidate.id] > _GAIN]
        if not hopeful and not self._last_look:  # guesses may be wrong: the nearest misses are measured once
            self._last_look, hopeful = True, ranked
        return self._with_their_unshrunk(hopeful[:_BATCH])

    def _with_their_unshrunk(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """A lever is judged against the unshrunk model on the same runtime, which is therefore measured too."""
        both = [*(Candidate(self._unchanged, candidate.backend) for candidate in candidates), *candidates]
        return [c for c in {candidate.id: candidate for candidate in both}.values() if not self._known(c)][:_BATCH]

    def _macs(self, candidate: Candidate) -> float:
        """Multiply-accumulates, each lever's share taken for itself: close enough to rank."""
        share = 1.0
        for step in candidate.active:
            share *= self._shares[_key(step)]
        return self._full * share

    @cached_property
    def _full(self) -> float:
        return self._count(self.trials.reference)

    @cached_property
    def _shares(self) -> Mapping[tuple[str, str], float]:
        runtime = self.trials.reference.backend
        shares = {}
        for place, steps in enumerate(self.space.choices[:-1]):
            for number in range(1, len(steps)):
                shares[_key(steps[number])] = self._count(self._single(place, number, runtime)) / self._full
        return shares

    def _count(self, candidate: Candidate) -> float:
        return count(self.trials.workshop, [candidate], self.trials.conditions.image_size)[candidate.id]["macs"]

    def _pool(self, rankers: Mapping[str, Ranker]) -> Sequence[Candidate]:
        """All candidates; of very many those that NSGA-II finds good by the guesses of cost and accuracy."""
        if self._all is not None:
            return self._all
        ranker = rankers[self._costs[0]]
        rising = -1.0 if self._costs[0] == "throughput" else 1.0
        found: dict[str, Candidate] = {}

        def guess(trial: optuna.Trial) -> tuple[float, float]:
            places = [trial.suggest_int(str(n), 0, len(steps) - 1) for n, steps in enumerate(self.space.choices)]
            candidate = self.space.at(places)
            if candidate is None:
                raise optuna.TrialPruned
            found[candidate.id] = candidate
            guessed = ranker.guesses([candidate])[candidate.id]
            return rising * guessed.best_cost, guessed.best_accuracy

        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            sampler = optuna.samplers.NSGAIISampler(seed=self.seed)
            study = optuna.create_study(directions=("minimize", "maximize"), sampler=sampler)
            study.optimize(guess, n_trials=_PROPOSING)
        finally:
            optuna.logging.set_verbosity(before)
        return list(found.values())


def _key(step: Step) -> tuple[str, str]:
    return step.name, str(dict(step.setting))
