"""What a candidate costs in a process of its own: the figures that a promise rests on.

One process alone keeps too few of its promises on small models: memory lies differently in each. So a promise about
time rests on the worst of three new processes, with 5 % to spare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from anyvit.costs.budget import Bound
from anyvit.costs.fresh import call_in_new_process
from anyvit.costs.memory import peak_memory
from anyvit.data.decode import decode
from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.bundle import Bundle
from anyvit.protocols import Runner
from anyvit.scaling.candidate import Candidate, Result
from anyvit.scaling.form import Form
from anyvit.scaling.pricing import THROUGHPUT_BATCH, Conditions, time_calls
from anyvit.scaling.search import PROMISE_MARGIN, TIMED
from anyvit.scaling.workshop import prepare

PROCESSES = 3
MEASURED = (*TIMED, "memory")
"""The costs that need a clock or a child process; the others are counted, and a promise about them is arithmetic."""


def measure_again(bundle: Bundle, id: str, costs: Sequence[str], picture: Path | None = None) -> dict[str, list[float]]:
    """The measured costs of a candidate, once for each of three new processes.

    Args:
        bundle: A bundle on disk.
        id: The candidate.
        costs: Names of the budget language; those that are counted are passed over.
        picture: An image file; `latency_e2e` needs one.

    Returns:
        By cost a value a process, in base units.
    """
    measured = [cost for cost in costs if cost in MEASURED]
    argument = {"bundle": str(bundle.folder), "id": id, "costs": measured, "picture": str(picture) if picture else None}
    rounds = [
        call_in_new_process("anyvit.deploy.promise:measure_here", argument) for _ in range(PROCESSES if measured else 0)
    ]
    return {cost: [figures[cost] for figures in rounds] for cost in measured}


def prove(bundle: Bundle, result: Result, bounds: Sequence[Bound], picture: Path | None = None) -> list[dict[str, Any]]:
    """For each bound on a cost, what `result` turns out to need: the findings of a promise in `bundle.json`.

    A measured cost is the worst of three new processes, and a timed one must keep its bound with 5 % to spare.
    """
    again = measure_again(bundle, result.id, [bound.cost for bound in bounds], picture)
    findings = []
    for bound in bounds:
        rounds = again.get(bound.cost, [result.costs[bound.cost]])
        value = max(rounds) if bound.operator == "<=" else min(rounds)
        met = bound.met_by(value, PROMISE_MARGIN if bound.cost in TIMED else 1.0)
        findings.append(finding_of(bound, value, met=met) | {"rounds": rounds})
    return findings


def finding_of(bound: Bound, value: float, *, met: bool) -> dict[str, Any]:
    """What `bundle.json` holds about a bound."""
    return {"bound": str(bound), "cost": bound.cost, "limit": bound.value, "value": value, "met": met}


def whole_call(runner: Runner, preprocessing: Preprocessing, picture: Path) -> Callable[[Any], Tensor]:
    """One answer with everything before it: reading, decoding, preprocessing, model."""
    return lambda _: runner(preprocessing(decode(picture)).unsqueeze(0))


def measure_here(argument: Mapping[str, Any]) -> dict[str, float]:
    """The measured costs of a bundle's candidate, in this process. See `measure_again` for the argument."""
    bundle = Bundle.load(argument["bundle"])
    runner = bundle.runner(bundle.result(argument["id"]))
    wanted, conditions = argument["costs"], bundle.conditions
    figures: dict[str, float] = {}
    if "latency" in wanted or "latency_p95" in wanted:
        latency = time_calls({"": runner}, conditions, conditions.batch)[""]
        figures |= {"latency": max(latency.round_medians), "latency_p95": latency.p95}
    if "throughput" in wanted:
        latency = time_calls({"": runner}, conditions, THROUGHPUT_BATCH)[""]
        figures["throughput"] = THROUGHPUT_BATCH / max(latency.round_medians)
    if "latency_e2e" in wanted:
        whole = whole_call(runner, bundle.preprocessing, Path(argument["picture"]))
        figures["latency_e2e"] = max(time_calls({"": whole}, conditions, 1)[""].round_medians)
    if "memory" in wanted:
        figures["memory"] = bundled_memory(bundle, argument["id"])
    return {cost: figures[cost] for cost in wanted}


def bundled_memory(bundle: Bundle, id: str) -> float:
    """The peak rise in memory, in bytes, of opening a bundle and answering with a candidate, in a new process."""
    return peak_memory("anyvit.deploy.promise:answer_bundled", {"bundle": str(bundle.folder), "id": id}).rise


def answer_bundled(argument: Mapping[str, Any]) -> None:
    """Load a bundle, build the runner of a candidate, and answer: what its memory is measured over."""
    bundle = Bundle.load(argument["bundle"])
    runner = bundle.runner(bundle.result(argument["id"]))
    runner(bundle.conditions.example())


def untrained_memory(form: Form, candidate: Candidate, conditions: Conditions) -> float:
    """The peak rise in memory, in bytes, of building an untrained candidate and answering, in a new process."""
    argument = {"form": form.to_json(), "candidate": candidate.to_json(), "conditions": asdict(conditions)}
    return peak_memory("anyvit.deploy.promise:answer_untrained", argument).rise


def answer_untrained(argument: Mapping[str, Any]) -> None:
    """Build a model with fresh weights and a candidate's runner, and answer: what its memory is measured over."""
    conditions = Conditions(**argument["conditions"])
    model = Form.from_json(argument["form"]).build().eval()
    runner = prepare(model, Candidate.from_json(argument["candidate"]), conditions.example())
    runner(conditions.example())
