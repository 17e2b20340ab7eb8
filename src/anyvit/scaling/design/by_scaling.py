"""Design by growing: a small plain ViT is scaled to the budget one factor at a time (hardware-aware scaling).

With images each step trains its candidates briefly on them; without, the training-free score stands in, and the image
size stays as it is, for scores of different sizes do not compare. The path is condensed into a strategy that can be
applied to another budget or machine (docs/systems/hwscaling.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from anyvit.costs.counts import Specification
from anyvit.errors import BudgetError
from anyvit.scaling.design.brief import Brief
from anyvit.scaling.design.by_score import DRAWS, out_of_reach, relatives_of, score_for, shape_of, surface
from anyvit.scaling.design.factors import Limits
from anyvit.scaling.design.finding import Designed, Finding
from anyvit.scaling.design.predicting import learn_latency
from anyvit.scaling.design.scaling import Cost, greedy
from anyvit.scaling.design.shape import Worth, name_of
from anyvit.scaling.design.shape_space import limits_for
from anyvit.scaling.design.short_training import ShortTraining
from anyvit.scaling.design.strategy import Strategy
from anyvit.scaling.design.trace import Trace

EPOCHS = 3
TOL = 0.12
NEAR = 0.5
"""The share of the budget from which on a shape of the path is measured as an answer."""

Judge = Callable[[Specification], Worth]

TRACE = "measured-trace"
"""Under which name a run keeps it."""


def find(brief: Brief) -> Finding:
    """The shape that growth ends with, and all others that its steps judged.

    Raises:
        BudgetError: The smallest shape is beyond the budget, or what growth ended with is when it is measured.
        Interrupted: Ctrl-C. The same call goes on.
    """
    learn_latency(brief)
    evaluate, measure = _evaluator(brief)
    cost, limits = _cost(brief), _limits(brief)
    before = brief.recall(TRACE)
    trace = greedy(
        _base(brief, limits, cost),
        1 / (1 + TOL),  # so that what ends above its target is inside the budget
        cost,
        evaluate,
        tol=TOL,
        limits=limits,
        trace=Trace.from_json(before) if before else None,
        kept=lambda trace: brief.keep(TRACE, trace.to_json()),
        progress=brief.progress,
    )
    ranking = _ranking(brief, trace, evaluate)
    return Finding(
        measure,
        ranking,
        relatives=relatives_of(brief, evaluate),
        path=_path(trace),
        surface=surface(brief, shape_of(ranking[0])),
        notes=_notes(brief, trace),
    )


def _evaluator(brief: Brief) -> tuple[Judge, str]:
    """What a shape is worth, and what that is in words."""
    if brief.dataset is not None:
        epochs = brief.epochs or EPOCHS
        training = ShortTraining(brief.dataset, brief.folder, epochs, (brief.seed,), progress=brief.progress)
        return training, f"accuracy after {epochs:g} epochs"
    score = score_for(brief)
    return (lambda spec: score(spec, DRAWS)), "training-free score, in place of an accuracy"


def _limits(brief: Brief) -> Limits:
    """As for any search at that image size; with images to judge by, smaller ones are tried too."""
    limits = limits_for(brief.image_size)
    if brief.dataset is None:
        return limits
    return replace(limits, image_size=(max(limits.patch_sizes), brief.image_size))


def _cost(brief: Brief) -> Cost:
    """The share of the budget that a shape takes: predicted, or measured where the predictor is too far off."""
    if brief.predictor_error is None or brief.predictor_error.usable:
        return brief.expected_load
    return lambda spec: brief.load(brief.measured([spec])[0].costs)


def _base(brief: Brief, limits: Limits, cost: Cost) -> Specification:
    """A small ViT, half as large as the images where that can be judged.

    Raises:
        BudgetError: It is beyond the budget.
    """
    patch = limits.patch_sizes[0]
    size = brief.image_size if brief.dataset is None else max(patch, brief.image_size // 2 // patch * patch)
    base = Specification(size, patch, 2, 1, 32, 2.0, num_classes=brief.num_classes)
    if cost(base) > 1:
        (measured,) = brief.measured([base])
        raise BudgetError(out_of_reach([measured], brief))
    return base


def _ranking(brief: Brief, trace: Trace, evaluate: Judge) -> list[Designed]:
    """The final shape first, then what else was judged on the way, from the dearest on."""
    load = {spec: brief.expected_load(spec) for spec in (trace.final, *trace.accuracies)}
    near = sorted((spec for spec in load if load[spec] > NEAR or spec == trace.final), key=lambda spec: -load[spec])
    near.sort(key=lambda spec: spec != trace.final)
    found = []
    for spec, designed in zip(near, brief.measured(near), strict=True):
        accuracy = trace.accuracies.get(spec) or evaluate(spec)
        found.append(replace(designed, worth=accuracy.value, spread=accuracy.standard_error))
    fitting = [designed for designed in found if designed.fits]
    if not fitting:
        raise BudgetError(out_of_reach(found, brief))
    return [*fitting, *(designed for designed in found if not designed.fits)]


def _path(trace: Trace) -> list[dict[str, object]]:
    """A row a step: what it aimed at, what it weighed, what it chose."""
    rows: list[dict[str, object]] = [{"step": 0, "chosen": name_of(trace.base), "load": trace.base_cost}]
    for number, step in enumerate(trace.steps, start=1):
        winner = step.winner
        rows.append(
            {
                "step": number,
                "grown": step.chosen or "nothing",
                "chosen": name_of(winner.spec) if winner and winner.spec else "",
                "load": winner.cost if winner else "",
                "worth": winner.accuracy.value if winner and winner.accuracy else "",
                "weighed": "; ".join(map(str, step.candidates)),
            }
        )
    return rows


def _notes(brief: Brief, trace: Trace) -> list[str]:
    notes = [f"{len(trace.accuracies)} shapes were judged in {len(trace.steps)} steps"]
    if trace.cost > trace.base_cost:
        conditions = {
            "binding": str(brief.binding),
            "batch": brief.timer.batch,
            "backend": str(brief.candidate.backend),
        }
        notes.append(f"strategy, as exponents of the cost: {Strategy.of(trace, conditions)}")
    if trace.stuck:
        notes.append(trace.stuck.partition("\n")[0])
    if brief.predictor_error:
        notes.append(f"the predictor of latency, {brief.predictor_error}")
    return notes
