"""What a candidate costs and is worth here, measured: a few at a time beside a reference, and remembered.

Machines drift over the minutes of a search. So each batch is timed in rounds that are interleaved with the reference,
and its times are told in the reference's first ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyvit.backends import backend_named
from anyvit.data import Split
from anyvit.data.loading import evaluation_batches
from anyvit.data.preprocessing import Preprocessing
from anyvit.protocols import Event, Progress, Runner, silent
from anyvit.scaling.candidate import Candidate, Result
from anyvit.scaling.pricing import Conditions, count, price
from anyvit.scaling.search import TIMED
from anyvit.scaling.workshop import Workshop

QUICK_IMAGES = 512
"""Validation images that every candidate answers; all of them decide between the last few."""

Batches = Sequence[tuple[Tensor, Tensor]]
"""Preprocessed images (B, 3, S, S) and labels (B,), kept in memory."""


@dataclass
class Trials:
    """Measures candidates of one model.

    Attributes:
        workshop: Builds them.
        reference: The candidate that all are timed beside: the unshrunk model in PyTorch's float32.
        conditions: Image size, batch and threads of the timings.
        images: Labelled images for the accuracy.
        throughput: Measure images per second too.
        end_to_end: As in `price`.
        protocol: Overrides of the timing protocol.
        keep: Told all results after each batch.
        results: What was measured so far, by id; those of an earlier process may be given.
        failures: Why candidates could not be built or gave no answer, by id.
    """

    workshop: Workshop
    reference: Candidate
    conditions: Conditions
    images: Batches
    throughput: bool = False
    end_to_end: Callable[[Runner], Callable[[Any], Any]] | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    keep: Callable[[Sequence[Result]], None] = lambda results: None
    progress: Progress = silent
    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, tuple[Result, str]] = field(default_factory=dict)

    def measure(self, wanted: Sequence[Candidate]) -> list[Result]:
        """The results of `wanted`, each measured once; what fails is noted in `failures` and left out."""
        new = [c for c in wanted if c.id not in self.results and c.id not in self.failures]
        able = [candidate for candidate in new if self._builds(candidate)]
        if able:
            self._measure(able)
            self.keep(list(self.results.values()))
        return [self.results[candidate.id] for candidate in wanted if candidate.id in self.results]

    def together(self, wanted: Sequence[Candidate]) -> list[Result]:
        """The costs of `wanted` with all of their runners resident, timed in turn. Accuracies are those known."""
        priced = self._priced(wanted)
        return [replace(result, accuracy=self.results[result.id].accuracy) for result in priced]

    def _measure(self, able: Sequence[Candidate]) -> None:
        first = self.results.get(self.reference.id)
        beside = [self.reference, *(candidate for candidate in able if candidate.id != self.reference.id)]
        reference, *others = self._priced(beside)
        if first is None:
            self.results[reference.id] = first = replace(reference, accuracy=self._accuracy(self.reference))
        for result in others:
            costs = {name: value * _drift(name, first, reference) for name, value in result.costs.items()}
            try:
                accuracy = self._accuracy(result.plain)
            except ArithmeticError as error:
                self.failures[result.id] = replace(result, costs=costs), str(error)
            else:
                self.results[result.id] = replace(result, costs=costs, accuracy=accuracy)

    def _priced(self, wanted: Sequence[Candidate]) -> list[Result]:
        results = price(
            self.workshop,
            wanted,
            self.conditions,
            throughput=self.throughput,
            end_to_end=self.end_to_end,
            progress=self.progress,
            **self.protocol,
        )
        return [replace(r, costs={**r.costs, "size": self._size(r)}) for r in results]

    def _builds(self, candidate: Candidate) -> bool:
        self.progress(Event("search", f"building {candidate.id}"))
        try:
            self.workshop.runner(candidate)(self.images[0][0][:1])
        except Exception as error:  # a runtime may fail in any way: the search goes on without it
            try:
                costs = count(self.workshop, [candidate], self.conditions.image_size)[candidate.id]
            except Exception:
                costs = {}
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.failures[candidate.id] = Result(candidate, costs), f"cannot be built: {lines[0][:200]}"
            return False
        return True

    @torch.inference_mode()
    def _accuracy(self, candidate: Candidate) -> float:
        """The share of the quick images that is answered right. Raises ArithmeticError where an answer is no number."""
        runner, right, total = self.workshop.runner(candidate), 0, 0
        for images, labels in self.images:
            probabilities = runner(images).cpu()
            if not probabilities.isfinite().all():
                raise ArithmeticError("some of its probabilities are not numbers")
            right += int((probabilities.argmax(1) == labels).sum())
            total += len(labels)
        return right / total

    def _size(self, result: Result) -> float:
        """Bytes of the weights as they are saved: of the model, or of the runtime's own file where there is one."""
        backend = backend_named(result.plain.backend.name)
        with tempfile.TemporaryDirectory(prefix="anyvit-") as folder:
            backend.save(self.workshop.runner(result.plain), Path(folder))
            own = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        return float(own) or result.costs["size"]


def _drift(cost: str, before: Result, now: Result) -> float:
    return before.costs[cost] / now.costs[cost] if cost in TIMED else 1.0


def quick_images(split: Split, preprocessing: Preprocessing, count: int = QUICK_IMAGES) -> Batches:
    """Up to `count` images of a split, evenly spread, preprocessed."""
    return list(evaluation_batches(split.sample(count), preprocessing))
