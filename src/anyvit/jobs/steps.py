"""The steps that the jobs which leave a bundle share: open the images, set up the planner, settle on a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anyvit.backends import BACKENDS, backend_named
from anyvit.costs.budget import Budget
from anyvit.data import DataSet, open_data
from anyvit.deploy.bundle import Bundle, write_bundle
from anyvit.deploy.report import samples_of, write_report
from anyvit.errors import SettingError
from anyvit.evaluation.metrics import Scores
from anyvit.jobs.document import Answer, Author
from anyvit.jobs.plan import Planner, sample_picture
from anyvit.jobs.run_folder import RunFolder
from anyvit.jobs.settle import settle
from anyvit.protocols import Backend, Event, Lever, Progress
from anyvit.scaling.candidate import Result
from anyvit.scaling.scoring import score, scores_of
from anyvit.scaling.shrink import lever_named

if TYPE_CHECKING:
    from torch import nn


def check_seed_and_threads(seed: int, threads: int) -> None:
    """Raise SettingError where they are out of range."""
    if seed < 0:
        raise SettingError(f"seed must not be negative: {seed}.")
    if threads < 1:
        raise SettingError(f"threads must be at least 1, not {threads}.")


def opened(data: str, seed: int, progress: Progress) -> DataSet:
    """The images, with what a user should know about them told."""
    progress(Event("data", f"opening {data}"))
    dataset = open_data(data, seed=seed, progress=progress)
    counts = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    progress(Event("data", f"{len(dataset.classes)} classes, images: {counts}"))
    for note in dataset.notes:
        progress(Event("data", note))
    return dataset


def planner_for(
    arguments: Mapping[str, Any], dataset: DataSet, run: RunFolder, progress: Progress, *, trained: bool = False
) -> Planner:
    """What plans a run by its `budget`, `levers`, `backends` and `threads`. `Planner` says what `trained` means."""
    budget = Budget.parse(arguments["budget"])
    return Planner(
        dataset,
        budget,
        _levers(arguments["levers"]),
        _backends(arguments["backends"]),
        arguments["threads"],
        sample_picture(dataset, budget, run.path),
        progress,
        trained,
    )


def _levers(names: str) -> list[Lever] | None:
    if names == "auto":
        return None
    return [] if names == "none" else [lever_named(name.strip()) for name in names.split(",")]


def _backends(names: str) -> list[Backend]:
    return list(BACKENDS) if names == "auto" else [backend_named(name.strip()) for name in names.split(",")]


def settled(
    model: nn.Module, history: Sequence[Mapping[str, float]], author: Author, run: RunFolder, progress: Progress
) -> Bundle:
    """Score every candidate of `model` on the validation split, promise one, and report."""
    dataset, plan = author.dataset, author.plan

    def write(answer: Answer) -> Bundle:
        document = author.document(answer, history)
        return write_bundle(author.out, model=model, document=document, training_images=author.training_images())

    def test(bundle: Bundle, chosen: Result) -> Scores:
        return scores_of(bundle.runner(chosen), dataset.splits["test"], plan.preprocessing, dataset.classes)

    results = score(model, plan.results, dataset.splits["val"], plan.preprocessing, dataset.classes, progress)
    budget = Budget.parse(author.arguments["budget"])
    bundle = settle(results, budget, write, test, progress, sample_picture(dataset, budget, run.path))
    write_report(bundle, samples_of(bundle, dataset.splits["test"]))
    return bundle
