"""A trained Vision Transformer and a budget in, the most accurate cheaper form of it that keeps the budget out.

The job, in order: open the images; price the ends of what there is, untrained, saying no early; give the model its
weights; search the candidates, measured here and scored on the validation split; tune the best one, where time is given
for it; promise the best one inside the budget, measured again in new processes; touch the test split once; write the
bundle and its report.
"""

from __future__ import annotations

import time as clock
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.models.vision_transformer import VisionTransformer

from anyvit.costs.budget import Budget
from anyvit.costs.device import this_device
from anyvit.data import DataSet
from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.bundle import Bundle
from anyvit.deploy.document import DOCUMENT
from anyvit.deploy.reference import load_weights
from anyvit.errors import BudgetError, SettingError
from anyvit.jobs.document import Author
from anyvit.jobs.offer import Offer
from anyvit.jobs.plan import Plan
from anyvit.jobs.run_folder import RunFolder
from anyvit.jobs.settle import missed
from anyvit.jobs.steps import check_seed_and_threads, opened, planner_for, settled
from anyvit.jobs.time_limit import seconds_of
from anyvit.models.hydravit import HydraViT, elastic
from anyvit.models.layers.importance import ordered_by_importance
from anyvit.protocols import Event, Progress, silent
from anyvit.scaling.candidate import Step
from anyvit.scaling.form import Form
from anyvit.scaling.shrink import lever_named
from anyvit.scaling.trials import quick_images

if TYPE_CHECKING:
    from torch import nn

ORDERING_IMAGES = 256
"""Training images that heads, channels and hidden units of a plain ViT are ordered by."""


def shrink(
    model: str,
    *,
    data: str,
    budget: str,
    out: str | None = None,
    weights: str | None = None,
    levers: str = "auto",
    backends: str = "auto",
    time: str | None = None,
    tune: str | None = None,
    seed: int = 0,
    threads: int = 1,
    anyway: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Measure every cheaper form of a trained model on this machine, and keep the best one inside the budget.

    Args:
        model: A model of timm or ours, with `weights`; or a bundle.
        data: Labelled images of the classes that it tells: whatever `fit` opens. Part of them choose, others test.
        budget: Bounds on costs and accuracy, `latency<=25ms, accuracy>=0.92`.
        out: The folder of the new bundle, `runs/NAME-shrunk` by default. The same folder and arguments resume.
        weights: A file of trained weights, or `pretrained`. None: those of the bundle.
        levers: Ways to make the model cheaper, separated by commas; `auto` is all that go with it, or `none`.
        backends: Runtimes to try, separated by commas; `auto` is all that are installed.
        time: Time for the whole run: `20m`, `2h`. The search then ends early, with the best it has found.
        tune: Time, of that, to train the best candidate further in its own shape, with the model as it was as teacher.
        seed: Of the split of the images.
        threads: Threads of the model when it answers.
        anyway: Go on even where no candidate can meet the budget.
        progress: Called with news.

    Returns:
        The bundle in `out`.

    Raises:
        BudgetError: No candidate meets the budget: early, where a cost cannot be met; or in the end, with a whole
            bundle of the closest candidate.
        DataError: The images are missing, damaged or too few.
        SettingError: An argument is out of range, weights are missing or tell other classes, or `out` holds another
            run.
        Interrupted: Ctrl-C; the same call resumes.
    """
    asked = {name: value for name, value in locals().items() if name not in ("out", "progress")}
    arguments = {**asked, "budget": str(Budget.parse(budget))}
    check_seed_and_threads(seed, threads)
    tuning = seconds_of(tune) if tune else None
    deadline = clock.monotonic() + seconds_of(time) if time else None
    if time and tuning and seconds_of(time) <= tuning:
        raise SettingError(f"tune {tune!r} leaves nothing of the time {time!r}: allow more.")
    source = _source(model, weights)
    folder = Path(out) if out else Path("runs") / f"{Path(model).name}-shrunk"
    with RunFolder(folder, arguments) as run:
        if run.finished:
            progress(Event("shrink", f"{folder} holds this very run, finished. Choose another --out to run it again."))
            bundle = Bundle.load(folder)
        else:
            dataset = opened(data, seed, progress)
            plan = _planned(run, dataset, arguments, source, progress)
            network = _weighted(plan.form, weights, source, dataset, plan.preprocessing, progress)
            author = Author(folder, arguments, dataset, plan, "shrink")
            bundle = settled(network, (), author, run, progress, deadline=deadline, tuning=tuning)
        run.finish()
        if bundle.document["promise"]["status"] == "missed":
            raise BudgetError(missed(bundle))
    return bundle


def _source(model: str, weights: str | None) -> Bundle | None:
    """The bundle that is to shrink, if it is one."""
    is_bundle = (Path(model) / DOCUMENT).is_file()
    if not is_bundle and weights is None:
        raise SettingError(f"{model} needs trained weights: name a file with --weights, or `pretrained`, or a bundle.")
    if is_bundle and weights is not None:
        raise SettingError(f"{model} is a bundle and has weights: leave out --weights {weights}.")
    return Bundle.load(model) if is_bundle else None


def _planned(
    run: RunFolder, dataset: DataSet, arguments: Mapping[str, Any], source: Bundle | None, progress: Progress
) -> Plan:
    planner = planner_for(arguments, dataset, run, progress, trained=True)
    form = Form.from_json(source.document["model"]) if source else planner.form(arguments["model"])
    form = _elastic(form, planner.offer)

    def decide() -> dict[str, Any]:
        return planner.plan_form(form, "as asked", anyway=arguments["anyway"]).to_json()

    return Plan.from_json(run.remember(f"plan-{this_device().fingerprint}", decide))


def _elastic(form: Form, offer: Offer) -> Form:
    """The form of the model made elastic, where it is not and the heads lever is to be tried: its heads are ordered."""
    heads = lever_named("heads")
    with torch.device("meta"):
        network = form.build()
    joins = not isinstance(network, HydraViT) and heads in offer.levers_for(network)
    return replace(form, levers=(*form.levers, Step(heads.name))) if joins else form


def _weighted(
    form: Form,
    weights: str | None,
    source: Bundle | None,
    dataset: DataSet,
    preprocessing: Preprocessing,
    progress: Progress,
) -> nn.Module:
    """The trained model in its form; where that makes it elastic, what matters most on training images comes first.

    Raises:
        SettingError: It tells other classes than those of the images.
    """
    before = Form.from_json(source.document["model"]) if source else Form(form.name, form.arguments)
    network = _model_of(source, dataset) if source else _loaded(before, str(weights), dataset, progress)
    if before == form:
        return network.eval()
    assert isinstance(network, VisionTransformer)
    batches = quick_images(dataset.splits["train"], preprocessing, ORDERING_IMAGES)
    return elastic(ordered_by_importance(network.eval(), torch.cat([images for images, _ in batches]))).eval()


def _model_of(source: Bundle, dataset: DataSet) -> nn.Module:
    if source.classes != dataset.classes:
        raise SettingError(
            f"{source.folder} tells {', '.join(source.classes)}, and the images are of "
            f"{', '.join(dataset.classes)}: give images of the same classes."
        )
    return source.model()


def _loaded(form: Form, weights: str, dataset: DataSet, progress: Progress) -> nn.Module:
    network = form.build(pretrained=weights == "pretrained")
    notes = load_weights(network, Path(weights)) if weights != "pretrained" else ()
    for note in notes:
        progress(Event("model", note))
    known = network.pretrained_cfg["num_classes"] if weights == "pretrained" else len(dataset.classes)  # type: ignore[index]
    if known != len(dataset.classes) or any(note.startswith("the classifier is new") for note in notes):
        raise SettingError(
            f"the weights of {form.name} do not tell the {len(dataset.classes)} classes of the images: train it for "
            f"them first, anyvit fit {dataset.source} --model {form.name} --weights {weights}"
        )
    return network
