"""The steps that the jobs which leave a bundle share: open the images, set up the planner, settle on a candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anyvit.costs.budget import Budget
from anyvit.data import DataSet, open_data
from anyvit.deploy.bundle import Bundle, write_bundle
from anyvit.deploy.promise import bundled_memory
from anyvit.deploy.report import samples_of, write_report
from anyvit.errors import SettingError
from anyvit.evaluation.metrics import Scores
from anyvit.jobs.document import Answer, Author
from anyvit.jobs.offer import Offer
from anyvit.jobs.plan import Planner, sample_picture, with_cost
from anyvit.jobs.run_folder import RunFolder
from anyvit.jobs.searching import Search
from anyvit.jobs.settle import settle
from anyvit.protocols import Event, Progress
from anyvit.scaling.candidate import Result
from anyvit.scaling.scoring import scores_of

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
    """What plans a run by its `budget`, `levers`, `backends` and `threads`. `Offer` says what `trained` means."""
    budget = Budget.parse(arguments["budget"])
    offer = offer_of(arguments, trained=trained)
    return Planner(dataset, budget, offer, sample_picture(dataset, budget, run.path), progress)


def offer_of(arguments: Mapping[str, Any], *, trained: bool) -> Offer:
    """What a run tries, by its `levers`, `backends` and `threads`."""
    return Offer.of(arguments["levers"], arguments["backends"], arguments["threads"], trained=trained)


def settled(
    model: nn.Module,
    history: Sequence[Mapping[str, float]],
    author: Author,
    run: RunFolder,
    progress: Progress,
    *,
    deadline: float | None = None,
    tuning: float | None = None,
) -> Bundle:
    """Find the candidates of `model` that are worth it, promise one, and report.

    Args:
        model: Trained.
        history: Of its training.
        author: Writes the documents.
        run: The folder of the run.
        progress: Called with news.
        deadline: When, on the monotonic clock, the run should end. The search leaves time for what comes after it.
        tuning: Seconds to train the best candidate further, in its own shape.
    """
    dataset, plan = author.dataset, author.plan
    budget = Budget.parse(author.arguments["budget"])
    picture = sample_picture(dataset, budget, run.path)
    search = Search(
        model.eval(),
        dataset,
        plan.preprocessing,
        budget,
        offer_of(author.arguments, trained=author.command == "shrink"),
        run,
        picture,
        author.arguments["seed"],
        deadline,
        progress,
    )
    search.find(plan.results, tuning)

    def write(answer: Answer) -> Bundle:
        return write_bundle(
            author.out,
            model=model,
            document=author.document(answer, history),
            training_images=author.training_images(),
            runners=search.runners(),
            tuned=search.tuned,
        )

    def test(bundle: Bundle, chosen: Result) -> Scores:
        return scores_of(bundle.runner(chosen), dataset.splits["test"], plan.preprocessing, dataset.classes)

    results = search.kept
    if any(bound.cost == "memory" for bound in budget.cost_bounds()):
        drafted = write(Answer(results, results[0].id))
        results = [with_cost(result, "memory", bundled_memory(drafted, result.id)) for result in results]
    bundle = settle(
        results, budget, write, test, progress, picture, spare=_standard_error(dataset, budget), explain=search.findings
    )
    write_report(bundle, samples_of(bundle, dataset.splits["test"]))
    return bundle


def _standard_error(dataset: DataSet, budget: Budget) -> float:
    """Of an accuracy about as high as the bound, on the validation split."""
    bound = budget.accuracy_bound()
    return math.sqrt(bound.value * (1 - bound.value) / len(dataset.splits["val"])) if bound else 0.0
