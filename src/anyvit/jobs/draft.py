"""What a run can already give while it trains: a whole bundle of the candidate that will probably be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from anyvit.costs.budget import Budget
from anyvit.deploy.bundle import write_bundle
from anyvit.deploy.promise import MEASURED, PROCESSES
from anyvit.jobs.document import Answer, Author
from anyvit.scaling.pricing import Conditions
from anyvit.scaling.scoring import score
from anyvit.scaling.search import choose, closest, within
from anyvit.scaling.workshop import Workshop

if TYPE_CHECKING:
    from torch import nn

GLANCE_IMAGES = 2000
"""Validation images that are looked at while training; all of them decide in the end."""

SECONDS_A_PROCESS = 15.0
"""What it takes to measure a candidate in a new process, loading PyTorch included."""


class Draft:
    """Validates while a run trains, and keeps the best state so far as a bundle whose promise is still unproven."""

    def __init__(self, author: Author) -> None:
        self.author = author
        results, budget = author.plan.results, Budget.parse(author.arguments["budget"])
        inside = any(within(result, budget) for result in results)
        self.likely = choose(results, budget) if inside else closest(results, budget)
        self.watched = {result.id: result for result in (results[0], self.likely, results[-1])}
        self.split = author.dataset.splits["val"].sample(GLANCE_IMAGES)
        self.best = 0.0

    def validate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Accuracy of the likely candidate, and of the largest and the smallest; a better one is written."""
        plan, classes = self.author.plan, self.author.dataset.classes
        workshop = Workshop(model, Conditions(plan.preprocessing.image_size).example())
        watched = score(workshop, list(self.watched.values()), self.split, plan.preprocessing, classes)
        scored = {result.id: result for result in watched}
        accuracy = scored[self.likely.id].accuracy or 0.0
        if accuracy > self.best:
            self.best = accuracy
            results = [scored.get(result.id, result) for result in plan.results]
            document = self.author.document(Answer(results, self.likely.id), history=())
            write_bundle(self.author.out, model=model, document=document, training_images=self.author.training_images())
        return {"accuracy": accuracy, **{f"accuracy/{id}": result.accuracy or 0.0 for id, result in scored.items()}}

    def seconds_to_settle(self) -> float:
        """About what scoring, promising and testing take after training."""
        counts = {name: len(split) for name, split in self.author.dataset.splits.items()}
        scoring = counts["val"] * sum(result.costs["latency"] for result in self.author.plan.results)
        testing = counts["test"] * self.likely.costs["latency"]
        bound = {bound.cost for bound in Budget.parse(self.author.arguments["budget"]).cost_bounds()}
        processes = PROCESSES * SECONDS_A_PROCESS if bound & set(MEASURED) else 0.0
        return (scoring + testing) / 2 + processes + 5.0  # batches on all cores take less than half the time
