"""A budget in, the shape of ViT for it out, before training: what fits this machine, ranked by what it may be worth.

The job, in order: open the images, if there are any; have a method search shapes inside the budget, on costs of this
machine; measure the best one again in new processes, and the next best where it misses; write `design.json`, from which
`fit --model` builds it, and the report.
"""

from __future__ import annotations

import json
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save

import anyvit
from anyvit.backends import backend_named
from anyvit.costs.budget import Budget
from anyvit.costs.device import this_device
from anyvit.deploy.design_report import write_design_report
from anyvit.deploy.designed import DESIGN, SCHEMA, Design
from anyvit.deploy.promise import prove_untrained
from anyvit.errors import BudgetError, SettingError, unknown
from anyvit.files import write_file, write_text
from anyvit.jobs.briefing import brief_for
from anyvit.jobs.document import command_line
from anyvit.jobs.run_folder import RunFolder
from anyvit.jobs.steps import check_seed_and_threads, opened
from anyvit.jobs.time_limit import seconds_of
from anyvit.protocols import Event, Progress, silent
from anyvit.scaling.candidate import Step
from anyvit.scaling.design import METHODS
from anyvit.scaling.design.brief import Brief
from anyvit.scaling.design.finding import Designed, Finding

WEIGHTS = "weights.safetensors"
"""Of the answer, where a method has trained it: `fit --weights` goes on from them."""

PROVED = 4
"""Shapes that are measured again, at most, until one keeps the budget."""


def design(
    data: str | None = None,
    *,
    budget: str,
    out: str | None = None,
    image_size: int | None = None,
    method: str = "score",
    backend: str = "torch",
    batch: int = 1,
    threads: int = 1,
    epochs: float | None = None,
    time: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Design:
    """Find the shape of ViT that is worth most inside a budget on this machine, before it is trained.

    Args:
        data: Labelled images, of any format that `fit` opens: they tell size and classes, and methods that train do it
            on them. None: 224 px and 1,000 classes.
        budget: Bounds on latency, MACs, parameters, size or memory: `latency<=50ms, params<=10M`.
        out: The folder of the design, `runs/NAME-design` by default. The same folder and arguments resume.
        image_size: Pixels a side of what the model sees. None: as the images are.
        method: How shapes are judged: `anyvit list methods`.
        backend: The runtime that latencies are of, and its precision after a colon: `openvino:bfloat16`.
        batch: Images a call.
        threads: Threads of the model.
        epochs: How often the trainings of a method see each image. None: what the method says.
        time: Time for the search: `20m`, `2h`. It then ends with what it has found.
        seed: Everything random follows from it.
        progress: Called with news.

    Returns:
        The design in `out`: `anyvit fit DATA --model OUT` trains it.

    Raises:
        BudgetError: No shape keeps the budget.
        DataError: The images are missing, damaged or too few.
        SettingError: An argument is out of range, the method needs images, or `out` holds another run.
        Interrupted: Ctrl-C; the same call goes on.
    """
    asked = {name: value for name, value in locals().items() if name not in ("out", "progress")}
    arguments = {**asked, "budget": str(Budget.parse(budget))}
    _check(arguments)
    deadline = clock.monotonic() + seconds_of(time) if time else None
    folder = Path(out) if out else Path("runs") / f"{Path(data).stem if data else 'shape'}-design"
    with RunFolder(folder, arguments, DESIGN) as run:
        if run.finished:
            progress(Event("design", f"{folder} holds this very design. Choose another --out to repeat it."))
        else:
            brief = brief_for(
                Budget.parse(budget),
                opened(data, seed, progress) if data else None,
                run,
                progress,
                backend=_backend(backend),
                image_size=image_size,
                batch=batch,
                threads=threads,
                epochs=epochs,
                deadline=deadline,
                seed=seed,
            )
            finding = METHODS[method].find(brief)
            chosen, promise = _proved(finding.ranking, brief)
            if finding.weights is not None and chosen.name == finding.chosen.name:
                write_file(folder / WEIGHTS, save({name: t.contiguous() for name, t in finding.weights.items()}))
            document = _document(arguments, folder, brief, finding, chosen, promise)
            write_text(folder / DESIGN, json.dumps(document, indent=2, allow_nan=False) + "\n")
            write_design_report(Design.load(folder))
        run.finish()
    return Design.load(folder)


def _check(arguments: Mapping[str, Any]) -> None:
    method, epochs = arguments["method"], arguments["epochs"]
    if method not in METHODS:
        raise SettingError(unknown("method", method, METHODS))
    if METHODS[method].needs_images and arguments["data"] is None:
        raise SettingError(f"--method {method} trains on images: name them, as in anyvit design photos/ --budget ...")
    for name in ("batch", "image_size"):
        if arguments[name] is not None and arguments[name] < 1:
            raise SettingError(f"{name} must be at least 1, not {arguments[name]}.")
    if epochs is not None and not epochs > 0:
        raise SettingError(f"epochs must be above 0, not {epochs:g}.")
    check_seed_and_threads(arguments["seed"], arguments["threads"])


def _backend(text: str) -> Step:
    """A runtime and, after a colon, its precision.

    Raises:
        SettingError: There is no such runtime, or it has no such precision here.
    """
    name, _, precision = text.partition(":")
    known = {setting.get("precision", "float32"): setting for setting in backend_named(name).settings(this_device())}
    if (precision or "float32") not in known:
        raise SettingError(unknown(f"precision of {name}", precision, known))
    return Step(name, dict(known[precision or "float32"]))


def _proved(ranking: Sequence[Designed], brief: Brief) -> tuple[Designed, dict[str, Any]]:
    """The best one that keeps the budget when measured again, in new processes; where none does, the first one."""
    tried = []
    for designed in [designed for designed in ranking if designed.fits][:PROVED]:
        brief.tell(f"{designed.name}: measuring again in new processes")
        bounds = prove_untrained(designed.form, brief.candidate, designed.costs, brief.conditions, brief.budget.bounds)
        if all(bound["met"] for bound in bounds):
            return designed, {"status": "kept", "bounds": bounds}
        brief.tell(f"{designed.name} does not keep the budget when measured again")
        tried.append((designed, {"status": "missed", "bounds": bounds}))
    if not tried:
        raise BudgetError(f"nothing that was measured keeps {brief.budget}. Allow more.")
    return tried[0]


def _document(
    arguments: Mapping[str, Any],
    folder: Path,
    brief: Brief,
    finding: Finding,
    chosen: Designed,
    promise: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `design.json`."""
    device = this_device()
    return {
        "schema": SCHEMA,
        "anyvit": anyvit.__version__,
        "command": command_line("design", {**arguments, "out": folder}),
        "run": dict(arguments),
        "device": {**asdict(device), "fingerprint": device.fingerprint},
        "conditions": asdict(brief.conditions),
        "model": chosen.form.to_json(),
        "chosen": chosen.name,
        "promise": dict(promise),
        "binding": brief.binding.cost,
        "measure": finding.measure,
        "ranking": [designed.to_json() for designed in finding.ranking],
        "relatives": [designed.to_json() for designed in finding.relatives],
        "path": [dict(step) for step in finding.path],
        "surface": finding.surface and finding.surface.to_json(),
        "predictor": brief.predictor_error and brief.predictor_error.to_json(),
        "notes": list(finding.notes),
        "finished": True,
    }
