"""What a run decides after it has trained: which candidate it promises, and what the test split says of it.

Validation chooses, test promises: the test split is touched once, by the one candidate that is promised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyvit.costs.budget import Bound, Budget, format_cost
from anyvit.deploy.bundle import Bundle
from anyvit.deploy.promise import finding_of, prove
from anyvit.evaluation.metrics import Scores
from anyvit.jobs.document import Answer
from anyvit.protocols import Event, Progress
from anyvit.scaling.candidate import Result
from anyvit.scaling.search import choose, closest, within

Write = Callable[[Answer], Bundle]
"""Writes an answer into the bundle on disk."""


def settle(
    results: Sequence[Result],
    budget: Budget,
    write: Write,
    test: Callable[[Bundle, Result], Scores],
    progress: Progress,
    picture: Path | None,
    spare: float = 0.0,
    explain: Callable[[Result], Mapping[str, Any] | None] = lambda chosen: None,
) -> Bundle:
    """Promise the most accurate result that keeps the budget when measured again; where none does, the closest.

    Args:
        results: Every candidate, priced and scored.
        budget: What is asked.
        write: Keeps an answer on disk; the candidate promised is measured from there.
        test: Scores a candidate on the test split. Called once.
        progress: Called with news.
        picture: An image file, where `latency_e2e` is bound.
        spare: How uncertain accuracies are, as a share of 1: what only just keeps a bound may miss it on other images.
        explain: What a search has to say about the candidate that is promised.
    """
    bounds = budget.cost_bounds()
    remaining, answer = list(results), Answer(results, results[0].id)
    while any(within(result, budget) for result in remaining):
        chosen = choose(remaining, budget, spare=spare)
        bundle = write(replace(answer, chosen=chosen.id))
        progress(Event("promise", f"{chosen.id}: proving that it keeps the budget"))
        findings = prove(bundle, chosen, bounds, picture)
        if all(finding["met"] for finding in findings):
            break
        progress(Event("promise", f"{chosen.id} does not keep the budget when measured again"))
        remaining.remove(chosen)
    else:
        chosen = closest(results, budget)
        bundle = write(replace(answer, chosen=chosen.id))
        findings = prove(bundle, chosen, bounds, picture)
    progress(Event("test", f"{chosen.id} answers the test images, once"))
    scores = test(bundle, chosen)
    if accuracy := budget.accuracy_bound():
        findings.append(accuracy_finding(accuracy, scores))
    kept = all(finding["met"] for finding in findings)
    status = "kept" if kept else "missed"
    return write(Answer(results, chosen.id, status, findings, scores, explain(chosen), finished=True))


def accuracy_finding(bound: Bound, scores: Scores) -> dict[str, Any]:
    """A bound on accuracy is met by the estimate; whether the interval's lower end meets it too is said beside it."""
    low, _ = scores.interval
    return finding_of(bound, scores.accuracy, met=bound.met_by(scores.accuracy)) | {
        "lower_end_meets": bound.met_by(low)
    }


def missed(bundle: Bundle) -> str:
    """The words for a finished run whose closest candidate misses the budget."""
    findings = [finding for finding in bundle.document["promise"]["bounds"] if not finding["met"]]
    words = [
        f"{finding['bound']} by {abs(finding['value'] / finding['limit'] - 1):.1%} "
        f"({format_cost(finding['cost'], finding['value'])})"
        for finding in findings
    ]
    return (
        f"the closest candidate, {bundle.chosen.id}, misses {', '.join(words)}{_most(bundle)}. "
        f"It is kept whole in {bundle.folder}."
    )


def _most(bundle: Bundle) -> str:
    """What gave most of what the closest candidate gained, where a search has told."""
    itself, *others = (bundle.document["search"] or {}).get("contributions") or [None]
    if not others:
        return ""
    most = max(others, key=lambda entry: entry["latency"])
    return f"; {most['without']} gave most ({most['latency'] / itself['latency']:.2f} times the speed)"
