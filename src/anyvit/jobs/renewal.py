"""A bundle on this machine: its costs, its promise and, on labelled images, its accuracies, measured anew and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyvit.costs.budget import Budget
from anyvit.costs.device import this_device
from anyvit.data import Split, open_data
from anyvit.deploy.bundle import Bundle
from anyvit.deploy.promise import bundled_memory, prove, whole_call
from anyvit.errors import BundleError, DataError
from anyvit.jobs.plan import with_cost
from anyvit.jobs.settle import accuracy_finding
from anyvit.jobs.unseen import open_unseen
from anyvit.protocols import Event, Progress, Runner
from anyvit.scaling.candidate import Candidate, Result
from anyvit.scaling.cascade import anew
from anyvit.scaling.pricing import price
from anyvit.scaling.scoring import score, scores_of
from anyvit.scaling.search import pareto, primary_cost
from anyvit.scaling.workshop import Workshop

if TYPE_CHECKING:
    from torch import nn


def renew(bundle: Bundle, data: str | None, progress: Progress) -> tuple[Bundle, tuple[str, ...]]:
    """Measure all candidates of a bundle here, prove its promise anew, and write both into it.

    Args:
        bundle: On disk; written anew.
        data: Labelled images that the accuracies are measured on. None: they stay, and where they are from elsewhere
            those of reduced precision stay unproven.
        progress: Called with news.

    Returns:
        The bundle with the new figures, and what does not hold here.
    """
    device, workshop = this_device(), KeptWorkshop(bundle)
    results, judged = _priced(bundle, workshop, progress), None
    if data:
        unseen = open_unseen(bundle, data, progress=progress).splits["test"]
        chooser = _validation(bundle, data, progress) or unseen
        results = score(workshop, results, chooser, bundle.preprocessing, bundle.classes, progress)
        judged = scores_of(workshop.runner(bundle.chosen.candidate), unseen, bundle.preprocessing, bundle.classes)
    budget = Budget.parse(bundle.document["run"]["budget"])
    progress(Event("measure", f"the promise of {bundle.chosen.id}, in new processes"))
    proved = prove(bundle, bundle.chosen, budget.cost_bounds(), _picture(bundle))
    if judged and (accuracy := budget.accuracy_bound()):
        proved.append(accuracy_finding(accuracy, judged))
    by_cost = {finding["cost"]: finding for finding in proved}
    findings = [by_cost.get(finding["cost"], finding) for finding in bundle.document["promise"]["bounds"]]
    proven = bool(data) or budget.accuracy_bound() is None or bundle.accuracy_holds(bundle.chosen)
    document = {
        **bundle.document,
        "device": {**asdict(device), "fingerprint": device.fingerprint},
        "accuracy_device": device.fingerprint if data else bundle.accuracy_device,
        "candidates": [result.to_json() for result in results],
        "front": [result.id for result in pareto(results, primary_cost(budget))],
        "promise": {"status": _status(findings, proven=proven), "bounds": findings},
    }
    renewed = bundle.rewrite(document)
    return renewed, _notes(renewed)


class KeptWorkshop(Workshop):
    """Builds the candidates of a bundle of what it keeps of them: tuned weights, calibrated graphs."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.model(), bundle.conditions.example())
        self._bundle = bundle

    def shape(self, candidate: Candidate) -> nn.Module:
        if candidate.id not in self._shapes:
            self._shapes[candidate.id] = self._bundle.shaped(candidate)
        return self._shapes[candidate.id]

    def _part(self, candidate: Candidate) -> Runner:
        if candidate.id not in self._runners:
            self._runners[candidate.id] = self._bundle.runner(Result(candidate))
        return self._runners[candidate.id]


def _priced(bundle: Bundle, workshop: Workshop, progress: Progress) -> list[Result]:
    """All candidates with their costs here: those that the bundle has, and throughput."""
    picture, preprocessing = _picture(bundle), bundle.preprocessing
    parts = {part.id: part for result in bundle.results for part in result.candidate.parts}
    priced = price(
        workshop,
        list(parts.values()),
        bundle.conditions,
        throughput=True,
        end_to_end=(lambda runner: whole_call(runner, preprocessing, picture)) if picture else None,
        progress=progress,
    )
    results = [anew(result, {each.id: each for each in priced}, workshop.shape) for result in bundle.results]
    if "memory" not in bundle.chosen.costs:
        return results
    return [with_cost(result, "memory", bundled_memory(bundle, result.id)) for result in results]


def _validation(bundle: Bundle, data: str, progress: Progress) -> Split | None:
    """The validation images of the run, where `data` is what it was opened from."""
    try:
        opened = open_data(data, seed=bundle.document["data"]["seed"], progress=progress)
    except DataError:  # too few to train on, which is not asked here
        return None
    same = opened.digest("val") == bundle.document["data"]["digests"]["val"]
    return opened.splits["val"] if same else None


def _status(findings: Sequence[Mapping[str, Any]], *, proven: bool) -> str:
    if not all(finding["met"] for finding in findings):
        return "missed"
    return "kept" if proven else "unproven"


def _notes(bundle: Bundle) -> tuple[str, ...]:
    unproven = [result.id for result in bundle.results if not bundle.accuracy_holds(result)]
    if not unproven:
        return ()
    return (
        f"the accuracy of {', '.join(unproven)} was measured on another device or with other versions: unproven here "
        f"until `anyvit measure {bundle.folder} --data IMAGES`",
    )


def _picture(bundle: Bundle) -> Path | None:
    """The image that `latency_e2e` was measured on, where it was."""
    if "latency_e2e" not in bundle.chosen.costs:
        return None
    picture = next(bundle.folder.glob("run/picture.*"), None)
    if picture is None:
        raise BundleError(
            f"{bundle.folder}/run/picture, the image that latency_e2e is measured on, is missing: "
            "copy the whole folder again."
        )
    return picture
