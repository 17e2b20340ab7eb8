"""The search for the candidates of a trained model that are worth promising, as a step of a job.

Every candidate that is measured is kept in the folder of the run, so an interrupted search goes on where it was.
Images for calibration come from the training split, and those that choose from the validation split.
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from anyvit.backends import backend_named
from anyvit.costs.budget import Budget
from anyvit.costs.device import this_device
from anyvit.data import DataSet
from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.promise import PROCESSES, whole_call
from anyvit.jobs.draft import SECONDS_A_PROCESS
from anyvit.jobs.offer import Offer
from anyvit.jobs.plan import RANKING
from anyvit.jobs.run_folder import TUNING, RunFolder
from anyvit.jobs.tune import tune
from anyvit.protocols import UNCHANGED, Event, Needs, Progress, Runner
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.cascade import cascades
from anyvit.scaling.explore import Explorer
from anyvit.scaling.pricing import Conditions
from anyvit.scaling.scoring import answers_of
from anyvit.scaling.search import choose, closest, primary_cost, within
from anyvit.scaling.space import Space
from anyvit.scaling.trials import Trials, quick_images
from anyvit.scaling.verdict import MOST, beaten, finalists, losers
from anyvit.scaling.workshop import Workshop

if TYPE_CHECKING:
    from torch import nn

CALIBRATION_IMAGES = 64
"""Training images that ranges of 8-bit numbers are set by."""


@dataclass
class Search:
    """The candidates of one trained model: measures them, keeps the good ones, and says what it found.

    Attributes:
        model: Trained, in evaluation mode.
        dataset: Training images calibrate and tune, validation images choose.
        preprocessing: From image to input.
        budget: What the candidates are for.
        offer: The levers and runtimes to try.
        run: Where measurements are kept.
        picture: An image file, where `latency_e2e` is bound.
        seed: Of the choices of the search, and of the tuning.
        deadline: When, on the monotonic clock, the whole run should end.
        progress: Called with news.
        kept: Once found: the candidates worth promising, priced and scored.
        tuned: Weights of candidates that were trained further, by id.
    """

    model: nn.Module
    dataset: DataSet
    preprocessing: Preprocessing
    budget: Budget
    offer: Offer
    run: RunFolder
    picture: Path | None
    seed: int
    deadline: float | None
    progress: Progress
    kept: list[Result] = field(default_factory=list)
    tuned: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.space = self.offer.space(self.model)
        self.conditions = Conditions(self.preprocessing.image_size, threads=self.offer.threads)
        self.workshop = Workshop(self.model, self.conditions.example(), self._calibration(), self.tuned)
        self._answers: dict[str, np.ndarray] = {}
        self._labels = np.zeros(0, dtype=np.int64)
        self._found: dict[str, Any] = {}

    def find(self, priced: Sequence[Result], tuning: float | None = None) -> None:
        """Find the candidates that are worth promising.

        Args:
            priced: Results without accuracy. Where they are all that there is, nothing else is measured.
            tuning: Seconds to train the best candidate further, in its own shape.
        """
        if [result.id for result in priced] == [candidate.id for candidate in islice(self.space, len(priced) + 1)]:
            self.kept = self._scored(priced)
        else:
            self._search(tuning or 0.0)
        if tuning:
            self._tune(tuning)
        if any(bound.cost == "latency_expected" for bound in self.budget.cost_bounds()):
            self.kept += cascades(self.kept, self._answers, self._labels, self.budget, self.workshop.shape)

    def runners(self) -> dict[str, Runner]:
        """The runners of all that is kept, by id, for a bundle to save."""
        parts = {part.id: part for result in self.kept for part in result.candidate.parts}
        return {id: self.workshop.runner(part) for id, part in parts.items()}

    def findings(self, chosen: Result) -> Mapping[str, Any] | None:
        """What `bundle.json` holds about a search, with what each step of the chosen candidate has brought."""
        if not self._found:
            return None
        return {**self._found, "contributions": self._contributions(chosen.candidate.parts[-1])}

    def _search(self, reserved: float) -> None:
        """Measure what is worth it, and keep the best: their costs taken together, their accuracy on all images."""
        for name, reason in self.offer.skipped(self.model).items():
            self.progress(Event("search", f"{name} is left out: {reason}"))
        for words in self.offer.absent():
            self.progress(Event("search", words))
        explorer = Explorer(
            self.space,
            self.trials,
            self.budget,
            seed=self.seed,
            out_of_time=lambda: self._seconds_left() < reserved,
            progress=self.progress,
        )
        results, cost = explorer.run(), primary_cost(self.budget)
        lost = losers(results, cost)
        final = finalists([result for result in results if result.id not in lost], self.budget)
        self.workshop.release([result.id for result in final])
        self.progress(Event("search", f"{len(final)} of {len(results)} measured candidates, measured together"))
        together = self.trials.together([result.plain for result in final])
        lost = {**lost, **losers(together, cost)}
        gains = [result for result in together if result.id not in lost and self._is_offered(result)]
        offered = [result for result in results if self._is_offered(result)]
        self.kept = self._scored(gains or offered[:MOST] or together[:1])  # a runtime asked for need not be a gain
        self._found = self._findings(explorer, results, lost)

    def _seconds_left(self) -> float:
        """Until what comes after the search has to begin."""
        if self.deadline is None:
            return math.inf
        reference = self.trials.results.get(self.trials.reference.id)
        images = MOST * len(self.dataset.splits["val"]) + len(self.dataset.splits["test"])
        answering = images * reference.costs["latency"] / 2 if reference else 0.0
        return self.deadline - clock.monotonic() - answering - PROCESSES * SECONDS_A_PROCESS

    def _tune(self, seconds: float) -> None:
        """Train the best candidate further, and keep what comes out beside it where it is better."""
        inside = any(within(result, self.budget) for result in self.kept)
        before = choose(self.kept, self.budget) if inside else closest(self.kept, self.budget)
        if not before.plain.active:
            self.progress(Event("tune", f"{before.id} is the unshrunk model: there is nothing to tune"))
            return
        after = replace(before, candidate=replace(before.plain, tuned=True))
        self.tuned[after.id] = tune(
            self.model,
            before.plain,
            self.dataset,
            self.preprocessing,
            seconds=seconds,
            seed=self.seed,
            folder=self.run.path / TUNING,
            progress=self.progress,
        )
        (after,) = self._scored([after])
        if (after.accuracy or 0.0) > (before.accuracy or 0.0):
            self.kept.append(after)
        else:
            del self.tuned[after.id]
        figures = {"accuracy_before": before.accuracy or 0.0, "accuracy_after": after.accuracy or 0.0}
        self.progress(Event("tune", f"{before.id}, before and after", figures=figures))
        told = {"id": after.id, "seconds": seconds, **figures}
        self._found = {**(self._found or self._plain_findings()), "tuning": told}

    def _is_offered(self, result: Result) -> bool:
        """The reference is measured even where its runtime is not asked for."""
        return any(result.plain.backend == runtime for runtime in self.space.choices[-1])

    def _scored(self, results: Sequence[Result]) -> list[Result]:
        """The results with their accuracy on the whole validation split."""
        scored = []
        for number, result in enumerate(results):
            self.progress(Event("score", result.id, done=number / len(results)))
            runner = self.workshop.runner(result.plain)
            self._labels, answers = answers_of(runner, self.dataset.splits["val"], self.preprocessing)
            self._answers[result.id] = answers
            scored.append(replace(result, accuracy=float((answers.argmax(1) == self._labels).mean())))
        return scored

    def _findings(self, explorer: Explorer, results: Sequence[Result], lost: Mapping[str, str]) -> dict[str, Any]:
        kept, cost = {result.id for result in self.kept}, primary_cost(self.budget)
        left = [(r, lost.get(r.id) or beaten(r, self.kept, cost)) for r in results if r.id not in kept]
        tried = [{**r.to_json(), "why": why} for r, why in (*left, *self.trials.failures.values())]
        return {**self._plain_findings(), "size": explorer.size, "measured": len(results), "tried": tried}

    def _plain_findings(self) -> dict[str, Any]:
        return {
            "size": len(self.kept),
            "measured": len(self.kept),
            "images": sum(len(labels) for _, labels in self.trials.images),
            "skipped": dict(self.offer.skipped(self.model)),
            "absent": self.offer.absent(),
            "tried": [],
        }

    def _contributions(self, chosen: Candidate) -> list[dict[str, Any]]:
        """The chosen candidate measured beside itself without one of its levers, and without its runtime."""
        without: dict[str, Candidate] = {}
        for step in chosen.active:
            rest = tuple(Step(s.name, UNCHANGED) if s is step else s for s in chosen.levers)
            without[step.name] = replace(chosen, levers=rest, tuned=False)
        if chosen.backend != self.trials.reference.backend:
            without[chosen.backend.name] = replace(chosen, backend=self.trials.reference.backend)
        self.trials.measure([chosen, *without.values()])
        able = {name: candidate for name, candidate in without.items() if candidate.id in self.trials.results}
        if not able:
            return []
        itself, *others = self.trials.together([chosen, *able.values()])
        return [_figures(None, itself), *map(_figures, able, others)]

    def _calibration(self) -> Tensor | None:
        """Images for the levers and precisions that need some; none are read where none does."""
        choices = zip((*self.space.levers, None), self.space.choices, strict=True)
        needs = {(lever or backend_named(step.name)).needs(step.setting) for lever, steps in choices for step in steps}
        if Needs.IMAGES not in needs:
            return None
        batches = quick_images(self.dataset.splits["train"], self.preprocessing, CALIBRATION_IMAGES)
        return torch.cat([images for images, _ in batches]) if batches else None

    @cached_property
    def trials(self) -> Trials:
        """What measures candidates; it reads its images when a search first asks for it."""
        name = f"measured-{this_device().fingerprint}"
        known = [Result.from_json(result) for result in self.run.recall(name) or ()]
        bound = {bound.cost for bound in self.budget.cost_bounds()}
        picture, preprocessing = self.picture, self.preprocessing
        return Trials(
            self.workshop,
            _reference(self.space),
            self.conditions,
            quick_images(self.dataset.splits["val"], preprocessing),
            throughput="throughput" in bound,
            end_to_end=(lambda runner: whole_call(runner, preprocessing, picture)) if picture else None,
            protocol={**RANKING, "warn": False},
            keep=lambda results: self.run.keep(name, [result.to_json() for result in results]),
            progress=self.progress,
            results={result.id: result for result in known},
        )


def _reference(space: Space) -> Candidate:
    """The unshrunk model in PyTorch's float32."""
    more = {key: value for key, value in space.choices[-1][0].setting.items() if key == "threads"}
    return Candidate(tuple(steps[0] for steps in space.choices[:-1]), Step("torch", more))


def _figures(without: str | None, result: Result) -> dict[str, Any]:
    costs = {name: result.costs[name] for name in ("latency", "macs", "params", "size")}
    return {"without": without, "id": result.id, "accuracy": result.accuracy, **costs}
