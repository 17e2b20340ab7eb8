"""`fit --model auto`: the shape that training begins with is designed for the budget, in a share of the run's time."""

from __future__ import annotations

import time

from anyvit.costs.budget import Budget
from anyvit.data import DataSet
from anyvit.jobs.briefing import brief_for
from anyvit.jobs.offer import EAGER
from anyvit.jobs.plan import Plan, Planner
from anyvit.jobs.run_folder import RunFolder
from anyvit.protocols import Event, Progress
from anyvit.scaling.candidate import Step
from anyvit.scaling.design import by_score
from anyvit.scaling.design.brief import BOUNDED

AUTO = "auto"

SHARE, MOST = 0.15, 600.0
"""Of a run's time for the design, and seconds of it at most: the search then ends with what it has."""


def plan_designed(
    planner: Planner,
    dataset: DataSet,
    run: RunFolder,
    progress: Progress,
    *,
    threads: int,
    seed: int,
    seconds: float | None,
    anyway: bool,
) -> Plan:
    """The plan for the plain ViT that scores highest inside the budget, made elastic where that lever is offered.

    Its subnetworks are smaller, so the whole of it is what uses the budget. Where nothing that a design can be held to
    is bounded, a preset is chosen.

    Args:
        planner: Of the run.
        dataset: Its image size counts, and its classes.
        run: Keeps what was measured.
        progress: Called with news.
        threads: Of the model.
        seed: The design follows from it.
        seconds: What the run may take; None: as long as it needs.
        anyway: As for `Planner.plan`.

    Raises:
        BudgetError: No shape keeps the budget.
    """
    bounds = tuple(bound for bound in planner.budget.bounds if bound.cost in BOUNDED)
    if not bounds:
        progress(Event("design", f"nothing to design for: the budget bounds none of {', '.join(BOUNDED)}"))
        return planner.plan(None, anyway=anyway)
    share = MOST if seconds is None else min(MOST, SHARE * seconds)
    brief = brief_for(
        Budget(bounds),
        dataset,
        run,
        progress,
        backend=Step(EAGER[0].name),
        threads=threads,
        deadline=time.monotonic() + share,
        seed=seed,
    )
    finding = by_score.find(brief)
    chosen = finding.chosen
    why = f"designed for {planner.budget}: the best of {len(finding.ranking)} shapes by a training-free score"
    return planner.plan_form(planner.trainable(chosen.form), why, anyway=anyway)
