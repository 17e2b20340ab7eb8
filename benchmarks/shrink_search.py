"""What each lever and runtime gives alone, and the search over all of them, on a real trained model.

    anyvit fit shared/data/cifar10 --model hydravit_small_patch4_32 --time 62m --out runs/cifar10
    python benchmarks/shrink_search.py runs/cifar10 --data shared/data/cifar10 --work runs/shrink-search

Every candidate of a space small enough is measured, a few at a time beside the reference; `--work` keeps times and
accuracies, so an interrupted run goes on, and times alone can be taken anew on a quiet machine. On these very figures
the search is then replayed for a dozen budgets: what it chooses against the best that there is, and how much it has
measured for it. Accuracy is that on 2,000 validation images.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anyvit.costs.budget import Budget
from anyvit.data import open_data
from anyvit.deploy.bundle import Bundle
from anyvit.jobs.offer import Offer
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.explore import Explorer
from anyvit.scaling.search import choose, pareto
from anyvit.scaling.space import Space
from anyvit.scaling.trials import Trials, quick_images
from anyvit.scaling.workshop import Workshop
from interleaved import write_result

BACKENDS = "torch,onnxruntime,openvino"
IMAGES = 2000
TOGETHER = 9
SHARES = (0.8, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.17, 0.14, 0.12)  # of the reference's latency: the budgets
DROPS = (0.005, 0.01, 0.02)  # of accuracy, where it alone is bound
TIMING = {"warmup_s": 0.2, "runs": 10, "min_time_s": 0.2, "warn": False}


class Remembering(Trials):
    """Trials that keep accuracies, which do not depend on what else the machine does."""

    accuracies: dict[str, float]

    def _accuracy(self, candidate: Candidate) -> float:
        if candidate.id not in self.accuracies:
            self.accuracies[candidate.id] = super()._accuracy(candidate)
        return self.accuracies[candidate.id]


class Replay(Trials):
    """Trials whose figures are known: asking for one costs nothing, and is counted."""

    def __init__(self, measured: Trials) -> None:
        kept = replace(measured, results={}, failures={}, keep=lambda results: None)
        self.__dict__.update(kept.__dict__)
        self._measured = measured

    def measure(self, wanted: Sequence[Candidate]) -> list[Result]:
        for candidate in wanted:
            if candidate.id in self._measured.failures:
                self.failures[candidate.id] = self._measured.failures[candidate.id]
            else:
                self.results[candidate.id] = self._measured.results[candidate.id]
        return [self.results[candidate.id] for candidate in wanted if candidate.id in self.results]


def measured(bundle: Bundle, data: str, space: Space, work: Path) -> Trials:
    """All candidates of the space, measured in random order."""
    splits = open_data(data, seed=bundle.document["data"]["seed"]).splits
    work.mkdir(parents=True, exist_ok=True)
    times, accuracies = work / "times.json", work / "accuracies.json"
    known = [Result.from_json(result) for result in _read(times) or ()]
    calibration = torch.cat([images for images, _ in quick_images(splits["train"], bundle.preprocessing, 64)])
    everything = list(space)
    trials = Remembering(
        Workshop(bundle.model(), bundle.conditions.example(), calibration),
        everything[0],
        bundle.conditions,
        quick_images(splits["val"], bundle.preprocessing, IMAGES),
        protocol=TIMING,
        keep=lambda results: times.write_text(json.dumps([result.to_json() for result in results])),
        results={result.id: result for result in known},
    )
    trials.accuracies = _read(accuracies) or {}
    by_shape = [everything[start : start + TOGETHER] for start in range(0, len(everything), TOGETHER)]
    random.Random(0).shuffle(by_shape)
    for number, batch in enumerate(by_shape):
        trials.measure(batch)
        trials.workshop.release()
        accuracies.write_text(json.dumps(trials.accuracies))
        print(f"{number + 1} of {len(by_shape)}", flush=True)
    return trials


def _read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else None


def alone(results: Sequence[Result], name: str) -> list[Result]:
    """The candidates that use one lever in PyTorch's float32, or (for "runtime") no lever, or (for "all") anything."""
    if name == "all":
        return list(results)
    eager = [result for result in results if result.plain.backend == Step("torch")]
    if name == "runtime":
        return [result for result in results if not result.plain.active]
    return [result for result in eager if all(step.name == name for step in result.plain.active)]


def within(results: Sequence[Result], budget: str) -> Result | None:
    parsed = Budget.parse(budget)
    inside = [r for r in results if all(b.met_by(r.costs[b.cost], 1.05) for b in parsed.cost_bounds())]
    return choose(inside, parsed) if inside else None


def replayed(trials: Trials, space: Space, budget: str) -> dict:
    """One search, and what measuring everything would have chosen."""
    replay, parsed = Replay(trials), Budget.parse(budget)
    Explorer(space, replay, parsed).run()
    best, found = (within(list(side.results.values()), budget) for side in (trials, replay))
    assert best is not None
    said = found or replay.results[replay.reference.id]
    told = {
        "budget": budget,
        "measured": len(replay.results) + len(replay.failures),
        "share_measured": (len(replay.results) + len(replay.failures)) / len(trials.results),
        "best": figures(best),
        "found": figures(said),
        "points_lost": 100 * ((best.accuracy or 0) - (said.accuracy or 0)) if found else None,
        "alone": {
            name: (one := within(alone(list(trials.results.values()), name), budget)) and figures(one)
            for name in (*(lever.name for lever in space.levers), "runtime")
        },
    }
    print(f"{budget}: {told['measured']} measured; {words(said)}; best {words(best)}")
    return told


def words(result: Result) -> str:
    return f"{result.id} {result.accuracy:.2%} at {1e3 * result.costs['latency']:.2f} ms"


def figures(result: Result) -> dict:
    return {
        "id": result.id,
        "latency": result.costs["latency"],
        "accuracy": result.accuracy,
        "macs": result.costs["macs"],
    }


def plot(trials: Trials, space: Space, searches: Sequence[dict], file: Path) -> None:
    """Accuracy against measured latency: each lever alone, runtimes alone, all combinations, the search's choices."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = list(trials.results.values())
    _, axes = pyplot.subplots(figsize=(8, 5))
    axes.scatter(*points(results), s=8, color="0.8", label=f"all {len(results)} combinations")
    for name, marker in zip((*(lever.name for lever in space.levers), "runtime"), "osD^v", strict=False):
        front = pareto(alone(results, name), "latency")
        axes.plot(*points(front), marker=marker, label=f"{name} alone")
    chosen = [search["found"] for search in searches]
    at = [c["latency"] * 1e3 for c in chosen], [100 * c["accuracy"] for c in chosen]
    axes.scatter(*at, s=70, facecolors="none", edgecolors="black", label="chosen by the search")
    axes.set(xlabel="latency of one image, ms", ylabel=f"accuracy on {IMAGES} validation images, %", xscale="log")
    axes.legend()
    axes.grid(visible=True, which="both", alpha=0.3)
    pyplot.tight_layout()
    pyplot.savefig(file, dpi=110)


def points(results: Sequence[Result]) -> tuple[list[float], list[float]]:
    return [r.costs["latency"] * 1e3 for r in results], [100 * (r.accuracy or 0) for r in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--levers", default="heads,tokens")
    parser.add_argument("--backends", default=BACKENDS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    bundle = Bundle.load(asked.bundle)
    space = Offer.of(asked.levers, asked.backends, 1, trained=True).space(bundle.model())
    trials = measured(bundle, asked.data, space, asked.work)
    reference = trials.results[trials.reference.id]
    budgets = [f"latency<={share * reference.costs['latency'] * 1e6:.0f}us" for share in SHARES]
    budgets += [f"accuracy>={100 * ((reference.accuracy or 0) - drop):.2f}%" for drop in DROPS]
    reachable = [budget for budget in budgets if within(list(trials.results.values()), budget)]
    searches = [replayed(trials, space, budget) for budget in reachable]
    plot(trials, space, searches, Path(__file__).parent / "results" / "shrink_search.png")
    write_result(
        "shrink_search",
        {
            "data": asked.data.rsplit("/", 1)[-1],
            "model": bundle.document["model"],
            "trained": {**bundle.document["run"], "data": Path(asked.data).name},
            "candidates": len(trials.results),
            "failed": [why for _, why in trials.failures.values()],
            "reference": figures(reference),
            "searches": searches,
            "fronts": {
                name: [figures(r) for r in pareto(alone(list(trials.results.values()), name), "latency")]
                for name in (*(lever.name for lever in space.levers), "runtime", "all")
            },
        },
    )


if __name__ == "__main__":
    main()
