"""Labelled images and a budget in, a trained Vision Transformer that meets it out.

The job, in order: open the images; choose a model and price its candidates untrained, saying no early where none can
meet the budget; train once; score every candidate on the validation split; promise the best one inside the budget,
measured again in new processes; touch the test split once; write the bundle and its report.
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anyvit.costs.budget import Budget
from anyvit.costs.device import this_device
from anyvit.data import DataSet
from anyvit.deploy.bundle import Bundle
from anyvit.deploy.reference import load_weights
from anyvit.errors import BudgetError, ModelError, SettingError
from anyvit.jobs.automatic import AUTO, plan_designed
from anyvit.jobs.document import Author, command_line
from anyvit.jobs.draft import Draft
from anyvit.jobs.plan import Plan
from anyvit.jobs.run_folder import FollowedFolder, RunFolder
from anyvit.jobs.settle import missed
from anyvit.jobs.steps import check_seed_and_threads, offer_of, opened, planner_for, settled
from anyvit.jobs.time_limit import seconds_of
from anyvit.models import create_model
from anyvit.models.hsvit import HSViT
from anyvit.protocols import Event, Progress, silent
from anyvit.scaling.form import Form
from anyvit.scaling.spread.mesh import Layout, deal
from anyvit.scaling.spread.parallel import parallelize, why_not_spread
from anyvit.training.objectives import objective_for
from anyvit.training.ranks import agreed, count, joined, rank, started_by_torchrun
from anyvit.training.recipes import RECIPES, find_recipe, recipe_for
from anyvit.training.trainer import Training, train

if TYPE_CHECKING:
    from torch import nn

SEARCHING = 0.25
"""The share of a run's time for searching, where there is more to try than the subnetworks in PyTorch."""


def fit(
    data: str,
    *,
    budget: str | None = None,
    out: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    levers: str = "auto",
    backends: str = "torch",
    epochs: float | None = None,
    time: str | None = None,
    seed: int = 0,
    threads: int = 1,
    spread: str | None = None,
    recipe: str | None = None,
    anyway: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Train once, measure every subnetwork on this machine, and keep the best one inside the budget.

    Args:
        data: A folder per class, parquet files, a CSV of path,label, `digits`, or a torchvision data set by name.
        budget: Bounds on costs and accuracy, `latency<=50ms, size<=20MB, accuracy>=0.9`. None: the most accurate.
        out: The folder of the bundle, `runs/NAME` by default. The same folder and arguments resume.
        model: One of ours, any plain ViT of timm, a folder that `design` wrote, or `auto`: designed for the budget
            first, in 15 % of the time, ten minutes at most. None: a preset, chosen by the images and the budget.
        weights: A file of weights to start from, or `pretrained`. It needs `model`.
        levers: Ways to make the model smaller, separated by commas; `auto` is heads or groups, or `none`. With those
            that need no training (tokens, prune) the trained model is searched as `shrink` does.
        backends: Runtimes to try once it is trained, separated by commas; `auto` is all that are installed.
        epochs: How often training sees each image. None: what the recipe says, or as `time` allows.
        time: Time for the whole run, search included: `90s`, `20m`, `2h`.
        seed: Everything random follows from it.
        threads: Threads of the model when it answers; training uses all cores.
        spread: Train an HSViT in all processes that torchrun has started: `groups`, `groups:hub` or `groups,data=2`
            (docs/distributed-training.md). A run may be resumed in another number of them, or in one.
        recipe: A recipe by name, or a JSON or TOML file. None: by the size of the data and `weights`.
        anyway: Train even where no candidate can meet the budget.
        progress: Called with news.

    Returns:
        The bundle in `out`.

    Raises:
        BudgetError: No candidate meets the budget: before training, within a minute, where a cost cannot be met; after
            it, with a whole bundle of the closest candidate, where the trained model misses a bound.
        DataError: The images are missing, damaged or too few.
        SettingError: An argument is out of range, or `out` holds another run.
        Interrupted: Ctrl-C; the same call resumes.
    """
    asked = {name: value for name, value in locals().items() if name not in ("out", "progress")}
    arguments = {**asked, "budget": str(Budget.parse(budget))}
    layout = _check(arguments)
    deadline = clock.monotonic() + seconds_of(time) if time else None
    folder = Path(out) if out else Path("runs") / (Path(data).stem or "run")
    with joined(wanted=layout is not None), _folder_of(folder, arguments) as run:
        progress = silent if rank() else progress
        if layout:
            _check_spread(model, layout)
        if agreed(lambda: run.finished):
            progress(Event("fit", f"{folder} holds this very run, finished. Choose another --out to run it again."))
            document = agreed(lambda: dict(Bundle.load(folder).document))
        else:
            dataset = opened(data, seed, progress)
            plan = agreed(lambda: _planned(run, dataset, arguments, deadline, progress))
            author = Author(folder, arguments, dataset, Plan.from_json(plan))
            training = _trained(author, run, layout, deadline, progress)
            document = agreed(
                lambda: dict(
                    settled(training.model, training.history, author, run, progress, deadline=deadline).document
                )
            )
        run.finish()
        bundle = Bundle(folder, document)
        if document["promise"]["status"] == "missed":
            raise BudgetError(missed(bundle))
    return bundle


def _folder_of(out: Path, arguments: Mapping[str, Any]) -> RunFolder:
    """The folder of the run, which the first process alone writes. However a training is spread, it is the same run."""
    if rank():
        return FollowedFolder(out)
    return RunFolder(out, {name: value for name, value in arguments.items() if name != "spread"})


def _check(arguments: Mapping[str, Any]) -> Layout | None:
    weights, epochs, seed, threads = (arguments[name] for name in ("weights", "epochs", "seed", "threads"))
    if weights and arguments["model"] in (None, AUTO):
        raise SettingError(f"weights {weights!r} belong to a model: name it with --model.")
    if epochs is not None and not 0 < epochs < math.inf:
        raise SettingError(f"epochs must be above 0, not {epochs:g}.")
    check_seed_and_threads(seed, threads)
    if arguments["spread"] is None:
        return None
    layout = Layout.parse(arguments["spread"])
    if not started_by_torchrun():
        command = command_line("fit", arguments)
        raise SettingError(f"--spread takes several processes. Type: torchrun --nproc-per-node 4 -m {command}")
    return layout


def _check_spread(model: str | None, layout: Layout) -> None:
    """Refuse early what cannot be spread over the processes that there are."""
    if model is None:
        raise SettingError("--spread is for a model that has groups: name one with --model, like hsvit_c4a8_32.")
    with torch.device("meta"):
        network = create_model(model)
    if reason := why_not_spread(network):
        raise ModelError(f"{model}: {reason}.")
    assert isinstance(network, HSViT)
    deal(network.num_groups, layout.columns(count()))


def _planned(
    run: RunFolder, dataset: DataSet, arguments: Mapping[str, Any], deadline: float | None, progress: Progress
) -> Any:
    """The plan, as JSON."""
    planner = planner_for(arguments, dataset, run, progress)

    def decide() -> Plan:
        if arguments["model"] != AUTO:
            return planner.plan(arguments["model"], anyway=arguments["anyway"])
        seconds = None if deadline is None else deadline - clock.monotonic()
        asked = {name: arguments[name] for name in ("threads", "seed", "anyway")}
        return plan_designed(planner, dataset, run, progress, seconds=seconds, **asked)

    return run.remember(f"plan-{this_device().fingerprint}", lambda: decide().to_json())


def _started(form: Form, weights: str | None, seed: int, progress: Progress) -> nn.Module:
    """The model that training starts from; the first process gives its weights to all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = form.build(pretrained=weights == "pretrained" and rank() == 0)
    if weights == "pretrained" or rank():
        return network
    if weights is None and not all(parameter.requires_grad for parameter in network.parameters()):
        raise SettingError(f"a part of {form.name} does not learn: start from --weights pretrained, or from a file.")
    for note in load_weights(network, Path(weights)) if weights else ():
        progress(Event("model", note))
    return network


def _seconds_to_train(author: Author, draft: Draft, deadline: float) -> float:
    """What is left for training, with time to settle and, where there is more to try, to search."""
    left = deadline - clock.monotonic() - draft.seconds_to_settle()
    space = offer_of(author.arguments, trained=False).space(author.plan.form.build())
    return left if space.size == len(author.plan.results) else left * (1 - SEARCHING)


def _trained(
    author: Author, run: RunFolder, layout: Layout | None, deadline: float | None, progress: Progress
) -> Training:
    """Train, or go on training. A draft of the bundle is there from the first validation on, and only improves."""
    arguments, plan = author.arguments, author.plan
    name = recipe_for(plan.preprocessing.image_size, trained=arguments["weights"] is not None)
    recipe = find_recipe(arguments["recipe"] or name, RECIPES[name])
    progress(Event("train", f"recipe {arguments['recipe'] or name}"))
    draft = Draft(author)
    seconds = agreed(lambda: None if deadline is None else _seconds_to_train(author, draft, deadline))
    if seconds is not None and seconds <= 0:
        raise SettingError(f"the time {arguments['time']!r} is over before training begins. Allow more.")
    network = _started(plan.form, arguments["weights"], arguments["seed"], progress)
    return train(
        network,
        author.dataset,
        objective=objective_for(network, seed=arguments["seed"]),
        recipe=recipe,
        preprocessing=plan.preprocessing,
        folder=run.path,
        epochs=arguments["epochs"],
        seconds=seconds,
        seed=arguments["seed"],
        validate=draft.validate,
        progress=progress,
        parallelize=partial(parallelize, trunk=layout.trunk) if layout else None,
        rows=layout.rows if layout else 1,
    )
