"""Design without training: hundreds of plain ViTs inside the budget, ranked by a training-free score.

First the latency of a few dozen shapes is measured, and a predictor learns from them. Then an evolution goes through
shapes that are predicted to use most of the budget. The best are measured, scored again over several draws, and ranked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from anyvit.costs.budget import format_cost
from anyvit.costs.counts import Specification
from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import BudgetError
from anyvit.scaling.design.brief import Brief
from anyvit.scaling.design.finding import Designed, Finding, Surface
from anyvit.scaling.design.predicting import learn_latency
from anyvit.scaling.design.probe import sample_crops
from anyvit.scaling.design.relatives import relatives
from anyvit.scaling.design.score import IMAGES, ShapeScore
from anyvit.scaling.design.shape import Worth
from anyvit.scaling.design.shape_space import ShapeGenes, is_sensible
from anyvit.scaling.design.supernet import Band, Evolution, Plan, evolve
from anyvit.scaling.trials import quick_images

MEASURE = "training-free score"
FULL = 0.85
"""The share of the budget that a shape is to use at least, by what is predicted of it."""

PLAN = Plan(population=32, generations=4, parents=10, mutants=6, children=6, attempts=400)
AIM = 0.96
"""The share of the budget that is aimed at: in a new process a timing is a few percent another one."""

FAR = 1.5
"""Of the budget: what takes more is not measured for comparison."""

AROUND = (1 / 3, 1 / 2, 2 / 3, 1, 4 / 3, 3 / 2, 2)
"""How much smaller and larger than the answer the shapes of a surface are."""

FINALISTS, DRAWS = 6, 3
SCORED = "measured-scores"
"""Under which name a run keeps them."""

TRIES = 6
"""Searches, each aimed lower than the one before, until the budget is given up."""


def find(brief: Brief) -> Finding:
    """The best plain ViT inside the budget by the score, and what it was chosen from.

    Raises:
        BudgetError: No shape fits; it names the one that comes nearest.
        Interrupted: Ctrl-C. The same call goes on with what was measured and scored.
    """
    learn_latency(brief)
    score = score_for(brief)
    aim, found = AIM, list[Designed]()
    for _ in range(TRIES):
        evolution = _searched(brief, score, aim)
        some = _finalists(brief, score, evolution)
        found += some
        if any(designed.fits for designed in some):
            break
        aim /= 1.02 * min(brief.load(designed.costs) for designed in some)  # what is predicted is too good to be true
    else:
        raise BudgetError(out_of_reach(found, brief))
    ranking = sorted(found, key=lambda designed: (not designed.fits, -(designed.worth or 0.0)))
    return Finding(
        MEASURE,
        ranking,
        relatives=relatives_of(brief, lambda spec: score(spec, DRAWS)),
        path=_path(evolution),
        surface=surface(brief, shape_of(ranking[0])),
        notes=_notes(brief, evolution),
    )


def score_for(brief: Brief) -> ShapeScore:
    """The score on the images at hand, or on crops of photographs; what a run has measured is known."""
    if brief.dataset is None:
        images = sample_crops(IMAGES, brief.image_size, seed=brief.seed)
    else:
        batches = quick_images(brief.dataset.splits["train"], Preprocessing(brief.image_size), IMAGES)
        images = torch.cat([images for images, _ in batches])
    known = brief.recall(SCORED) or ()
    return ShapeScore(images, brief.seed, known, keep=lambda known: brief.keep(SCORED, known))


def _searched(brief: Brief, score: ShapeScore, aim: float) -> Evolution[Specification]:
    """Shapes that are predicted to use most of that share of the budget, each scored on one draw of its weights.

    Where a budget is so small that next to no shape uses most of it, those that use less are searched too.
    """
    try:
        return _evolved(brief, score, FULL * aim, aim)
    except BudgetError:
        return _evolved(brief, score, 0.0, aim)


def _evolved(brief: Brief, score: ShapeScore, low: float, high: float) -> Evolution[Specification]:
    return evolve(
        ShapeGenes(brief.image_size, brief.num_classes),
        Band(lambda spec: brief.expected_load(spec) if is_sensible(spec) else math.inf, low, high, "times the budget"),
        lambda spec: score(spec, draws=1).value,
        PLAN,
        seed=brief.seed,
        known=relatives(brief.image_size, brief.num_classes).values(),
        stop=lambda: brief.is_late,
        progress=brief.progress,
    )


def _finalists(brief: Brief, score: ShapeScore, evolution: Evolution[Specification]) -> list[Designed]:
    """The best ones scored again over several draws, and measured."""
    best = [spec for spec, _ in evolution.ranked()[:FINALISTS]]
    measured = brief.measured(best)
    return [_judged(designed, score(spec, DRAWS)) for spec, designed in zip(best, measured, strict=True)]


def _judged(designed: Designed, worth: Worth) -> Designed:
    return replace(designed, worth=worth.value, spread=worth.standard_error)


def relatives_of(brief: Brief, worth: Callable[[Specification], Worth]) -> list[Designed]:
    """Models that everybody knows, measured unless they are far outside; those inside the budget judged as well."""
    known = relatives(brief.image_size, brief.num_classes)
    near = {name: spec for name, spec in known.items() if brief.expected_load(spec) <= FAR}
    found = []
    for (name, spec), designed in zip(near.items(), brief.measured(list(near.values())), strict=True):
        named = replace(designed, name=name)
        found.append(_judged(named, worth(spec)) if named.fits else named)
    return sorted(found, key=lambda designed: (not designed.fits, -(designed.worth or 0.0)))


def shape_of(designed: Designed) -> Specification:
    """The shape of a designed plain ViT."""
    return Specification(**designed.form.arguments)


def _path(evolution: Evolution[Specification]) -> list[dict[str, Any]]:
    """How the best score rose, a step a generation."""
    return [
        {"step": f"generation {generation}", "worth": best}
        for generation, best in enumerate(evolution.best_by_generation)
    ]


def surface(brief: Brief, spec: Specification) -> Surface:
    """What plain ViTs like this one would cost by depth and by number of heads."""
    cost = brief.binding.cost
    depths = sorted({max(1, round(spec.depth * factor)) for factor in AROUND})
    heads = sorted({max(1, round(spec.heads * factor)) for factor in AROUND})
    values = [[brief.predicted(replace(spec, depth=depth, heads=count))[cost] for count in heads] for depth in depths]
    return Surface(cost, depths, [count * spec.head_dim for count in heads], values)


def _notes(brief: Brief, evolution: Evolution[Specification]) -> list[str]:
    """What a user should know."""
    notes = [f"{len(evolution.scores)} shapes were scored without training; what a score is worth: docs/design.md"]
    if brief.predictor_error:
        notes.append(f"the predictor of latency, {brief.predictor_error}")
    if brief.is_late:
        notes.append("the time was over before the search had ended")
    return notes


def out_of_reach(found: Sequence[Designed], brief: Brief) -> str:
    """Why none fits, with the one that comes nearest."""
    nearest = min(found, key=lambda designed: brief.load(designed.costs))
    costs = ", ".join(f"{b.cost} {format_cost(b.cost, nearest.costs[b.cost])}" for b in brief.budget.bounds)
    return f"none of {len(found)} shapes keeps {brief.budget}: the nearest, {nearest.name}, has {costs}. Allow more."
