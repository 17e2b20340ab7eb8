"""Does a designed shape keep its latency, and is it worth more than the DeiTs and timm's ViTs inside the same budget?

    python benchmarks/design_budgets.py predictor                  # held-out error of the latency predictor; be quiet
    python benchmarks/design_budgets.py budgets --work /tmp/b      # 5 to 200 ms at 224 px, without images
    python benchmarks/design_budgets.py train --work /tmp/b        # the same at 64 px, scaled, trained on CIFAR-10

Each resumes, and each writes its own part of the result. One thread, PyTorch float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

import anyvit
from anyvit.costs.counts import Specification, vit_macs
from anyvit.costs.device import this_device
from anyvit.costs.timing_cache import TimingCache
from anyvit.data import open_data
from anyvit.deploy.designed import Design
from anyvit.jobs.plan import RANKING
from anyvit.scaling.candidate import Step
from anyvit.scaling.design.by_score import shape_of
from anyvit.scaling.design.factors import latin_hypercube
from anyvit.scaling.design.finding import Designed
from anyvit.scaling.design.shape_space import limits_for
from anyvit.scaling.design.short_training import ShortTraining
from anyvit.scaling.design.timing import ShapeTimer
from anyvit.training.recipes import RECIPES
from small_data import few
from training_runs import tell

BUDGETS = {5: "90s", 10: "90s", 25: "2m", 50: "3m", 100: "4m", 200: "5m"}
"""Milliseconds, and the time for each search."""
TRAINED = (25, 50, 100, 200)
LARGE, SMALL = 224, 64
IMAGES_A_CLASS, EPOCHS = 500, 2
SHAPES, HELD_OUT, MACS = 75, 1 / 3, (0.1e9, 6e9)
RESULTS = Path(__file__).parent / "results" / "design_budgets.json"


def predictor(asked: argparse.Namespace) -> None:
    """The error on a third of 75 random shapes from a few milliseconds to two hundred."""
    accept = lambda spec: MACS[0] <= vit_macs(spec) <= MACS[1]  # noqa: E731
    shapes = latin_hypercube(limits_for(LARGE), SHAPES, 0, accept)
    timer = ShapeTimer(Step("torch"), cache=TimingCache(), **RANKING, progress=tell("predictor"), warn=False)
    _, error = timer.predictor(shapes, held_out=HELD_OUT)
    latencies = timer.latencies(shapes)
    seconds = sorted(latency.seconds for latency in latencies.values())
    unstable = sum(latency.unstable for latency in latencies.values())
    print(error, f"{unstable} of {len(shapes)} timings unstable", flush=True)
    found = {**error.to_json(), "shapes": len(shapes), "unstable": unstable, "from_s": seconds[0], "to_s": seconds[-1]}
    write("predictor", found)


def budgets(asked: argparse.Namespace) -> None:
    """A design for each budget at 224 px, measured again in new processes."""
    table = {}
    for limit, seconds in BUDGETS.items():
        out = asked.work / f"{limit}ms"
        design = anyvit.design(
            budget=f"latency<={limit}ms", image_size=LARGE, out=str(out), time=seconds, progress=tell(f"{limit} ms")
        )
        table[f"{limit} ms"] = told(design)
        print(limit, table[f"{limit} ms"], flush=True)
        write("budgets at 224 px", table)


def told(design: Design) -> dict:
    """What a table says of a design."""
    (bound,) = design.document["promise"]["bounds"]
    inside = [each for each in design.relatives if each.fits]
    best = max(inside, key=lambda each: each.worth, default=None)
    return {
        "chosen": design.chosen.name,
        "latency_s": bound["value"],
        "rounds_s": bound["rounds"],
        "kept": bound["met"],
        "macs": design.chosen.costs["macs"],
        "score": design.chosen.worth,
        "score_error": design.chosen.spread,
        "best inside": best and {"name": best.name, "score": best.worth, "latency_s": best.costs["latency"]},
        "predictor": design.document["predictor"],
    }


def train(asked: argparse.Namespace) -> None:
    """Budgets scaled by the number of pixels: the designed shape against the best and the largest well-known one."""
    data = few(open_data(asked.data), IMAGES_A_CLASS)
    recipe = dataclasses.replace(
        RECIPES["scratch-small"],
        precision="bfloat16",
        threads=1,
        rand_augment=0,
        mixing=0.0,  # a short schedule
    )
    accuracy_of = ShortTraining(data, asked.work / "trained", EPOCHS, recipe=recipe, progress=tell("train"))
    table = {}
    for limit in TRAINED:
        scaled = limit * (SMALL / LARGE) ** 2
        design = anyvit.design(
            asked.data,
            budget=f"latency<={scaled:.3f}ms",
            image_size=SMALL,
            time="2m",
            out=str(asked.work / f"{limit}ms-scaled"),
            progress=tell(f"{scaled:.2f} ms"),
        )
        row = told(design) | {"budget_s": scaled * 1e-3, "accuracy": accuracy(accuracy_of, shape_of(design.chosen))}
        row["well-known, inside"] = {
            each.name: {"latency_s": each.costs["latency"], **accuracy(accuracy_of, shape_of(each))}
            for each in rivals(design)
        }
        table[f"{limit} ms scaled"] = row
        print(limit, row, flush=True)
        write("trained at 64 px", table)


def rivals(design: Design) -> list[Designed]:
    """The well-known models inside the budget with the highest score and with the most MACs."""
    inside = [each for each in design.relatives if each.fits]
    if not inside:
        return []
    best = {max(inside, key=lambda each: each.worth).name, max(inside, key=lambda each: each.costs["macs"]).name}
    return [each for each in inside if each.name in best]


def accuracy(accuracy_of: ShortTraining, spec: Specification) -> dict[str, float]:
    found = accuracy_of(spec)
    return {"accuracy": found.value, "standard_error": found.standard_error}


def write(part: str, found: dict) -> None:
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    record |= {
        "device": str(this_device()),
        "conditions": "one thread, batch 1, PyTorch float32",
        "training": f"CIFAR-10, {IMAGES_A_CLASS} images a class, {EPOCHS} epochs, seed 0; 5,000 validation images",
        part: found,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("predictor", "budgets", "train"))
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--work", type=Path, default=Path("/tmp/design_budgets"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    {"predictor": predictor, "budgets": budgets, "train": train}[asked.part](asked)


if __name__ == "__main__":
    main()
