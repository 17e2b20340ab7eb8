"""What a model costs on this machine: a name on every runtime, its parts for a cost table, or a bundle anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyvit.costs.device import this_device
from anyvit.deploy.bundle import DOCUMENT, Bundle
from anyvit.deploy.promise import untrained_memory
from anyvit.deploy.reference import load_weights
from anyvit.errors import AnyViTError, ModelError, SettingError
from anyvit.files import write_text
from anyvit.jobs.offer import Offer
from anyvit.jobs.plan import preprocessing_of, with_cost
from anyvit.jobs.renewal import renew
from anyvit.protocols import Device, Event, Progress, silent
from anyvit.scaling.candidate import Candidate, Result
from anyvit.scaling.form import Form
from anyvit.scaling.pricing import Conditions, price
from anyvit.scaling.spread.boards import CostTable
from anyvit.scaling.spread.pace import measure_costs
from anyvit.scaling.workshop import Workshop

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Measurement:
    """What candidates cost, where, and under which conditions; `notes` say what does not hold here."""

    model: str
    device: Device
    conditions: Conditions
    results: Sequence[Result]
    cost_table: CostTable | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "device": {**asdict(self.device), "fingerprint": self.device.fingerprint},
            "conditions": asdict(self.conditions),
            "results": [result.to_json() for result in self.results],
            "cost_table": self.cost_table and self.cost_table.to_json(),
            "notes": list(self.notes),
        }


def measure(
    model: str,
    *,
    weights: str | None = None,
    backends: str = "auto",
    data: str | None = None,
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
        backends: Runtimes to try on a name, separated by commas; `auto` is all that are installed.
        data: Labelled images, of any format: the accuracy of every candidate of a bundle is measured again as well,
            for it may differ from device to device as times do. The validation images of the run where they are
            among them, else those that the model has not seen.
        batch: Images a call, for latency.
        threads: Threads of the model.
        cost_table: Instead, measure the parts that boards may take of it (of an HSViT 1, 2, 4, … groups, of a plain
            ViT sub-models of 1, 2, 4, … heads) and write the table to this file, for `devices.yaml` to name.
        progress: Called with news: also of runtimes that are left out, and why.

    Raises:
        ModelError: There is no such model, no runtime takes it, or it cannot be spread.
        BundleError: The bundle is damaged.
        DataError: Nothing to judge the candidates of the bundle on.
        SettingError: `weights` or `backends` are given for a bundle, `data` for a name, a number is below 1, or
            `batch` is not 1 for a cost table.
    """
    bundled = (Path(model) / DOCUMENT).exists()
    if bundled and weights:
        raise SettingError(f"{model} is a bundle and has its own weights: leave out {weights!r}.")
    if bundled and backends != "auto":
        raise SettingError(f"{model} is a bundle and has its own candidates: leave out --backends {backends}.")
    if data and not bundled:
        raise SettingError(f"--data judges the candidates of a bundle, and {model} is none: leave it out.")
    if cost_table:
        return _measure_parts(model, weights, batch, threads, Path(cost_table), progress)
    if bundled:
        bundle, notes = renew(Bundle.load(model), data, progress)
        return Measurement(model, this_device(), bundle.conditions, bundle.results, notes=notes)
    return _measure_name(Form(model), weights, Offer.of("none", backends, threads), batch, progress)


def _measure_name(form: Form, weights: str | None, offer: Offer, batch: int, progress: Progress) -> Measurement:
    model = _named(form, weights)
    conditions = Conditions(preprocessing_of(model).image_size, batch, offer.threads)
    workshop = Workshop(model, conditions.example(), images=conditions.example())  # noise calibrates well enough here
    for words in [f"{name} is left out: {why}" for name, why in offer.skipped(model).items()] + offer.absent():
        progress(Event("measure", words))
    wanted = _built(workshop, list(offer.space(model)), progress)
    results = price(workshop, wanted, conditions, throughput=True, progress=progress)
    progress(Event("measure", "memory, in new processes"))
    results = [with_cost(r, "memory", untrained_memory(form, r.plain, conditions)) for r in results]
    return Measurement(form.name, this_device(), conditions, results)


def _built(workshop: Workshop, wanted: Sequence[Candidate], progress: Progress) -> list[Candidate]:
    """Those candidates that can be built; of the others it is told why not."""
    built, refused = [], []
    for number, candidate in enumerate(wanted):
        progress(Event("measure", f"building {candidate.id}", number / len(wanted)))
        try:
            workshop.runner(candidate)
        except AnyViTError as error:
            refused.append(f"{candidate.id} is left out: {error}")
            progress(Event("measure", refused[-1]))
        else:
            built.append(candidate)
    if not built:
        raise ModelError("; ".join(refused))
    return built


def _named(form: Form, weights: str | None) -> nn.Module:
    model = form.build(pretrained=weights == "pretrained").eval()
    if weights and weights != "pretrained":
        load_weights(model, Path(weights))
    return model


def _measure_parts(
    name: str, weights: str | None, batch: int, threads: int, file: Path, progress: Progress
) -> Measurement:
    if batch != 1:
        raise SettingError(f"a cost table holds the seconds of one image: leave out batch {batch}.")
    bundled = (Path(name) / DOCUMENT).exists()
    model = Bundle.load(name).model() if bundled else _named(Form(name), weights)
    table = measure_costs(model, name, threads=threads, progress=progress)
    write_text(file, json.dumps(table.to_json(), indent=2) + "\n")
    return Measurement(name, this_device(), Conditions(preprocessing_of(model).image_size, 1, threads), [], table)
