"""What a run writes into `bundle.json`, whole at every moment: a draft while it trains, and the end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyvit
from anyvit.costs.budget import Budget
from anyvit.costs.device import this_device
from anyvit.data import DataSet
from anyvit.evaluation.metrics import Scores
from anyvit.jobs.plan import Plan
from anyvit.scaling.candidate import Result
from anyvit.scaling.search import pareto, primary_cost


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run has to say: a candidate, how it keeps the bounds, and how good it is on images it never saw.

    Attributes:
        results: Every candidate with its figures.
        chosen: The id of one of them.
        promise: "kept", "missed", or "unproven" while the run goes on.
        bounds: For each bound of the budget what was found.
        test: Scores on the test split.
        search: What was tried beside the results, where there was more to try.
        finished: False for a draft.
    """

    results: Sequence[Result]
    chosen: str
    promise: str = "unproven"
    bounds: Sequence[Mapping[str, Any]] = ()
    test: Scores | None = None
    search: Mapping[str, Any] | None = None
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Author:
    """Writes the documents of one run of a command into the folder `out`."""

    out: Path
    arguments: Mapping[str, Any]
    dataset: DataSet
    plan: Plan
    command: str = "fit"

    def document(self, answer: Answer, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """The content of `bundle.json`, without what `write_bundle` adds about its files."""
        budget = Budget.parse(self.arguments["budget"])
        device = this_device()
        return {
            "anyvit": anyvit.__version__,
            "task": "classification",
            "classes": list(self.dataset.classes),
            "preprocessing": self.plan.preprocessing.to_json(),
            "model": self.plan.form.to_json(),
            "data": {
                "source": self.dataset.source,
                "seed": self.arguments["seed"],
                "digests": {name: self.dataset.digest(name) for name in self.dataset.splits},
                "counts": {name: len(split) for name, split in self.dataset.splits.items()},
                "notes": list(self.dataset.notes),
            },
            "run": {**self.arguments, "why": self.plan.why},
            "command": command_line(self.command, {**self.arguments, "out": self.out}),
            "device": {**asdict(device), "fingerprint": device.fingerprint},
            "conditions": {
                "batch": 1,
                "threads": self.arguments["threads"],
                "image_size": self.plan.preprocessing.image_size,
            },
            "finished": answer.finished,
            "candidates": [result.to_json() for result in answer.results],
            "front": [result.id for result in pareto(answer.results, primary_cost(budget))],
            "chosen": answer.chosen,
            "promise": {"status": answer.promise, "bounds": [dict(bound) for bound in answer.bounds]},
            "test": answer.test and answer.test.to_json(),
            "search": answer.search,
            "history": [dict(entry) for entry in history],
        }

    def training_images(self) -> list[int]:
        """Content hashes of the images that training or choosing has seen."""
        seen = [self.dataset.splits[name].images for name in ("train", "val")]
        return [images.content_hash(index) for images in seen for index in range(len(images))]


def command_line(command: str, arguments: Mapping[str, Any]) -> str:
    """The command that repeats a call: its first argument by position, the others where they differ from nothing."""
    first, *others = arguments.items()
    words = ["anyvit", command, str(first[1])]
    for name, value in others:
        if value is True:
            words.append(f"--{name}")
        elif value not in (None, False, ""):
            words += [f"--{name}", str(value)]
    return shlex.join(words)
