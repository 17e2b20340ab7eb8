"""Ten budgets spread over the range of a preset: every promised latency holds when it is measured again.

    python benchmarks/budgets.py                                     # the preset of the quick start
    python benchmarks/budgets.py --preset hydravit_small_patch16_224

For each budget the candidate is chosen, proved in three new processes and, where it fails there, passed over for the
next one, by the very code of `anyvit fit`. Then yet another new process measures it. The weights are untrained: they do
not change what a candidate costs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from anyvit.backends import BACKENDS
from anyvit.costs.budget import Budget
from anyvit.costs.fresh import call_in_new_process
from anyvit.data import open_data
from anyvit.deploy.bundle import Bundle, write_bundle
from anyvit.evaluation.metrics import Scores
from anyvit.jobs.document import Answer, Author
from anyvit.jobs.plan import Plan, Planner
from anyvit.jobs.settle import settle
from anyvit.protocols import Event, silent
from anyvit.scaling.candidate import Result
from anyvit.scaling.shrink import lever_named
from interleaved import Spread, write_result

DATA = open_data("digits")
WORDS = "not keep"  # what `settle` says of a candidate that it passes over


def planned(preset: str) -> Plan:
    """The candidates of a preset, priced as a run prices them."""
    levers = [lever_named("heads")]
    return Planner(DATA, Budget(), levers, BACKENDS, threads=1, picture=None, progress=silent).plan(preset)


def promised(plan: Plan, network: nn.Module, limit: float, folder: Path) -> tuple[Bundle, list[str]]:
    """The bundle that a run with a bound on the latency would leave, and what it said about candidates passed over."""
    arguments = {"data": DATA.source, "budget": f"latency<={1e3 * limit:.4f}ms", "seed": 0, "threads": 1}
    author, passed_over = Author(folder, arguments, DATA, plan), []

    def write(answer: Answer) -> Bundle:
        return write_bundle(folder, model=network, document=author.document(answer, ()), training_images=())

    def nothing_learned(bundle: Bundle, chosen: Result) -> Scores:
        return Scores.of(np.arange(len(DATA.classes)), np.full((len(DATA.classes),) * 2, 0.1), DATA.classes)

    def hear(event: Event) -> None:
        if WORDS in event.message:
            passed_over.append(event.message)

    return settle(plan.results, Budget.parse(arguments["budget"]), write, nothing_learned, hear, None), passed_over


def measured_again(bundle: Bundle) -> float:
    """The largest round median of the chosen candidate in a new process, in seconds."""
    argument = {"bundle": str(bundle.folder), "id": bundle.chosen.id, "costs": ["latency"], "picture": None}
    return call_in_new_process("anyvit.deploy.promise:measure_here", argument)["latency"]


def main() -> None:
    """Promise each budget, measure again, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="hydravit_small_patch2_8")
    parser.add_argument("--budgets", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="a glance that only shows that it runs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plan = planned(asked.preset)
    network = plan.form.build().eval()
    latencies = [result.costs["latency"] for result in plan.results]
    limits = np.geomspace(1.25 * min(latencies), 1.15 * max(latencies), 1 if asked.quick else asked.budgets)
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        for limit in limits.tolist():
            bundle, passed_over = promised(plan, network, limit, Path(folder))
            promise, again = bundle.document["promise"], measured_again(bundle)
            (finding,) = promise["bounds"]
            entry = {
                "budget": finding["bound"],
                "candidate": bundle.chosen.id,
                "promise": promise["status"],
                "proved": finding["rounds"],
                "again": again,
                "holds": again <= finding["limit"],
                "passed_over": passed_over,
            }
            entries.append(entry)
            print(
                f"{finding['bound']}: {bundle.chosen.id}, {promise['status']}, again {1e3 * again:.3f} ms", flush=True
            )
    made = [entry for entry in entries if entry["promise"] == "kept"]
    held = sum(entry["holds"] for entry in made)
    print(f"{len(made)} promises for {len(entries)} budgets; {held} hold when measured again")
    ratios = Spread.of([entry["again"] / max(entry["proved"]) for entry in made] or [np.inf])
    print(f"measured again / proved: {ratios}, largest {ratios.largest:.3f} (the margin is 1.05)")
    result = {"preset": asked.preset, "promises": len(made), "hold": held, "again_over_proved": ratios}
    write_result(f"budgets-{asked.preset}", {**result, "budgets": entries}, quick=asked.quick)


if __name__ == "__main__":
    main()
