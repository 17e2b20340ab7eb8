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
from anyvit.scaling.cascade import extremes
from anyvit.scaling.form import Form
from anyvit.scaling.pricing import THROUGHPUT_BATCH, Conditions, time_calls
from anyvit.scaling.search import TIMED, margin_of
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

    A measured cost is the worst of three new processes, and a timed one must keep its bound with 5 % to spare. Beside
    the expected latency of a cascade stands the share that it rests on: of the validation images that went on.
    """
    again = measure_again(bundle, result.id, [bound.cost for bound in bounds], picture)
    shares = {"latency_expected": {"escalated": result.escalated}} if result.escalated else {}
    return [_held(bound, again, result.costs) | shares.get(bound.cost, {}) for bound in bounds]


def prove_untrained(
    form: Form, candidate: Candidate, costs: Mapping[str, float], conditions: Conditions, bounds: Sequence[Bound]
) -> list[dict[str, Any]]:
    """The same for a model that is not trained yet, by its form, on bounds of latency, memory and what is counted."""
    argument = {"form": form.to_json(), "candidate": candidate.to_json(), "conditions": asdict(conditions)}
    again: dict[str, list[float]] = {}
    if any(bound.cost == "latency" for bound in bounds):
        again["latency"] = [
            call_in_new_process("anyvit.deploy.promise:time_untrained", argument) for _ in range(PROCESSES)
        ]
    if any(bound.cost == "memory" for bound in bounds):
        again["memory"] = [untrained_memory(form, candidate, conditions) for _ in range(PROCESSES)]
    return [_held(bound, again, costs) for bound in bounds]


def _held(bound: Bound, again: Mapping[str, Sequence[float]], counted: Mapping[str, float]) -> dict[str, Any]:
    """A bound held against the worst of several measurements, or against what was counted."""
    rounds = [*again.get(bound.cost, [counted[bound.cost]])]
    value = max(rounds) if bound.operator == "<=" else min(rounds)
    return finding_of(bound, value, met=bound.met_by(value, margin_of(bound.cost))) | {"rounds": rounds}


def finding_of(bound: Bound, value: float, *, met: bool) -> dict[str, Any]:
    """What `bundle.json` holds about a bound."""
    return {"bound": str(bound), "cost": bound.cost, "limit": bound.value, "value": value, "met": met}


def whole_call(runner: Runner, preprocessing: Preprocessing, picture: Path) -> Callable[[Any], Tensor]:
    """One answer with everything before it: reading, decoding, preprocessing, model."""
    return lambda _: runner(preprocessing(decode(picture)).unsqueeze(0))


def measure_here(argument: Mapping[str, Any]) -> dict[str, float]:
    """The measured costs of a bundle's candidate, in this process. See `measure_again` for the argument.

    Those of a cascade are taken where every image goes on, but for `latency_expected`: there only the share does that
    did so in validation.
    """
    bundle = Bundle.load(argument["bundle"])
    result = bundle.result(argument["id"])
    first, runner = extremes(bundle.runner(result))
    wanted, conditions = argument["costs"], bundle.conditions
    figures: dict[str, float] = {}
    if not {"latency", "latency_p95", "latency_expected"}.isdisjoint(wanted):
        calls = {"every image goes on": runner} | ({} if first is runner else {"none goes on": first})
        worst, *sure = time_calls(calls, conditions, conditions.batch).values()
        slowest = max(worst.round_medians)
        least = max(sure[0].round_medians) if sure else slowest
        figures |= {"latency": slowest, "latency_p95": worst.p95}
        figures["latency_expected"] = least + result.escalated * (slowest - least)
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
    """Load a bundle, build the runner of a candidate, and answer, with all parts of a cascade: for its memory."""
    bundle = Bundle.load(argument["bundle"])
    _, runner = extremes(bundle.runner(bundle.result(argument["id"])))
    runner(bundle.conditions.example())


def untrained_memory(form: Form, candidate: Candidate, conditions: Conditions) -> float:
    """The peak rise in memory, in bytes, of building an untrained candidate and answering, in a new process."""
    argument = {"form": form.to_json(), "candidate": candidate.to_json(), "conditions": asdict(conditions)}
    return peak_memory("anyvit.deploy.promise:answer_untrained", argument).rise


def answer_untrained(argument: Mapping[str, Any]) -> None:
    """Build a model with fresh weights and a candidate's runner, and answer: what its memory is measured over."""
    runner, conditions = _untrained(argument)
    runner(conditions.example())


def time_untrained(argument: Mapping[str, Any]) -> float:
    """The latency in seconds of an untrained candidate, in this process."""
    runner, conditions = _untrained(argument)
    return max(time_calls({"": runner}, conditions, conditions.batch)[""].round_medians)


def _untrained(argument: Mapping[str, Any]) -> tuple[Runner, Conditions]:
    conditions = Conditions(**argument["conditions"])
    model = Form.from_json(argument["form"]).build().eval()
    example = conditions.example()
    return prepare(model, Candidate.from_json(argument["candidate"]), example, images=example), conditions
