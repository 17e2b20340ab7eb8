"""What a model costs on this machine: its candidates, or its parts for a cost table.

For a bundle, the figures and the promise are measured anew and kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyvit.backends import BACKENDS
from anyvit.costs.budget import Budget
from anyvit.costs.device import this_device
from anyvit.deploy.bundle import DOCUMENT, Bundle
from anyvit.deploy.promise import bundled_memory, prove, untrained_memory, whole_call
from anyvit.deploy.reference import load_weights
from anyvit.errors import BundleError, SettingError
from anyvit.files import write_text
from anyvit.jobs.plan import preprocessing_of, with_cost
from anyvit.protocols import Device, Event, Progress, silent
from anyvit.scaling.candidate import Result
from anyvit.scaling.form import Form
from anyvit.scaling.pricing import Conditions, price
from anyvit.scaling.search import pareto, primary_cost
from anyvit.scaling.space import Space
from anyvit.scaling.spread.boards import CostTable
from anyvit.scaling.spread.pace import measure_costs

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Measurement:
    """What candidates cost, where, and under which conditions."""

    model: str
    device: Device
    conditions: Conditions
    results: Sequence[Result]
    cost_table: CostTable | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "device": {**asdict(self.device), "fingerprint": self.device.fingerprint},
            "conditions": asdict(self.conditions),
            "results": [result.to_json() for result in self.results],
            "cost_table": self.cost_table and self.cost_table.to_json(),
        }


def measure(
    model: str,
    *,
    weights: str | None = None,
    batch: int = 1,
    threads: int = 1,
    cost_table: str | None = None,
    progress: Progress = silent,
) -> Measurement:
    """Parameters, MACs, size, memory, latency and throughput here, for each precision and runtime.

    Args:
        model: A registered name, ours or timm's; or the folder of a bundle, whose figures are measured again under
            its own conditions and replaced, so that its promise holds on this machine or is said to be missed.
        weights: A file of weights, or `pretrained`. Costs hardly depend on them.
        batch: Images a call, for latency.
        threads: Threads of the model.
        cost_table: Instead, measure the parts that boards may take of it (of an HSViT 1, 2, 4, … groups, of a plain
            ViT sub-models of 1, 2, 4, … heads) and write the table to this file, for `devices.yaml` to name.
        progress: Called with news.

    Raises:
        ModelError: There is no such model, or it cannot be spread.
        BundleError: The bundle is damaged.
        SettingError: `weights` are given for a bundle, a number is below 1, or `batch` is not 1 for a cost table.
    """
    bundled = (Path(model) / DOCUMENT).exists()
    if bundled and weights:
        raise SettingError(f"{model} is a bundle and has its own weights: leave out {weights!r}.")
    if cost_table:
        return _measure_parts(model, weights, batch, threads, Path(cost_table), progress)
    if bundled:
        return _measure_bundle(Bundle.load(model), progress)
    return _measure_name(model, weights, batch, threads, progress)


def _measure_name(name: str, weights: str | None, batch: int, threads: int, progress: Progress) -> Measurement:
    form, model = Form(name), _named(name, weights)
    conditions = Conditions(preprocessing_of(model).image_size, batch, threads)
    device = this_device()
    wanted = list(Space.of(model, [], BACKENDS, device))
    results = price(model, wanted, conditions, throughput=True, progress=progress)
    progress(Event("measure", "memory, in new processes"))
    results = [with_cost(r, "memory", untrained_memory(form, r.candidate, conditions)) for r in results]
    return Measurement(name, device, conditions, results)


def _named(name: str, weights: str | None) -> nn.Module:
    model = Form(name).build(pretrained=weights == "pretrained").eval()
    if weights and weights != "pretrained":
        load_weights(model, Path(weights))
    return model


def _measure_parts(
    name: str, weights: str | None, batch: int, threads: int, file: Path, progress: Progress
) -> Measurement:
    if batch != 1:
        raise SettingError(f"a cost table holds the seconds of one image: leave out batch {batch}.")
    bundled = (Path(name) / DOCUMENT).exists()
    model = Bundle.load(name).model() if bundled else _named(name, weights)
    table = measure_costs(model, name, threads=threads, progress=progress)
    write_text(file, json.dumps(table.to_json(), indent=2) + "\n")
    return Measurement(name, this_device(), Conditions(preprocessing_of(model).image_size, 1, threads), [], table)


def _measure_bundle(bundle: Bundle, progress: Progress) -> Measurement:
    """Measure all candidates of a bundle here, prove its promise anew, and write both into it."""
    device = this_device()
    results = [
        replace(now, accuracy=before.accuracy)
        for before, now in zip(bundle.results, _priced_anew(bundle, progress), strict=True)
    ]
    budget = Budget.parse(bundle.document["run"]["budget"])
    progress(Event("measure", f"the promise of {bundle.chosen.id}, in new processes"))
    proved = {
        finding["cost"]: finding for finding in prove(bundle, bundle.chosen, budget.cost_bounds(), _picture(bundle))
    }
    findings = [proved.get(finding["cost"], finding) for finding in bundle.document["promise"]["bounds"]]
    document = {
        **bundle.document,
        "device": {**asdict(device), "fingerprint": device.fingerprint},
        "candidates": [result.to_json() for result in results],
        "front": [result.id for result in pareto(results, primary_cost(budget))],
        "promise": {
            "status": "kept" if all(finding["met"] for finding in findings) else "missed",
            "bounds": findings,
        },
    }
    bundle.rewrite(document)
    return Measurement(str(bundle.folder), device, bundle.conditions, results)


def _priced_anew(bundle: Bundle, progress: Progress) -> list[Result]:
    """The costs of all candidates here: those that the bundle has, and throughput."""
    picture, preprocessing = _picture(bundle), bundle.preprocessing
    results = price(
        bundle.model(),
        [result.candidate for result in bundle.results],
        bundle.conditions,
        throughput=True,
        end_to_end=(lambda runner: whole_call(runner, preprocessing, picture)) if picture else None,
        progress=progress,
    )
    if "memory" not in bundle.chosen.costs:
        return results
    return [with_cost(result, "memory", bundled_memory(bundle, result.id)) for result in results]


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
