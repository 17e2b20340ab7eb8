"""As-ViT's search without training on two cores, with cheap measurements, and how those rank against the reference's.

    python benchmarks/asvit_search.py --work /tmp/asvit                # 500 steps at 96 px, one draw of the weights
    python benchmarks/asvit_search.py --work /tmp/asvit --compare 30   # random topologies under both settings

The reference measures at 224 px with five draws. At 96 px the grids 24, 12, 6 and 3 take every topology of the
published space. Images are real photographs. What is killed goes on where it was, step by step or topology by topology.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from anyvit.costs.counts import count_macs, count_params
from anyvit.data.decode import decode
from anyvit.data.preprocessing import Preprocessing
from anyvit.files import write_text
from anyvit.models.asvit import AsViT
from anyvit.models.asvit_topology import Topology
from anyvit.scaling.design.asvit import Search, Space, search
from anyvit.scaling.design.training_free import Measurement, measure
from interleaved import write_result

IMAGES, SEED, STEPS = 16, 8, 500
SETTINGS = {
    "reference": {"image_size": 224, "repeats": 5, "seed": 0},
    "cheap": {"image_size": 96, "repeats": 1, "seed": 0},
    "cheap, drawn again": {"image_size": 96, "repeats": 1, "seed": 1},
}
"""How a topology is measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/imagenet-samples"))
    parser.add_argument("--work", type=Path, required=True, help="keeps what was measured; a killed run resumes")
    parser.add_argument("--compare", type=int, metavar="N", help="compare both settings on N random topologies")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the search (default {STEPS})")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.compare:
        compare(asked.compare, asked.data, asked.work / "compare.json")
    else:
        run_search(asked.steps, asked.data, asked.work / "search.json")
    parts = {name: read(asked.work / f"{name}.json") for name in ("search", "compare")}
    write_result("asvit_search", parts, quick=asked.steps < STEPS)


class Clock:
    """Seconds by the wall, and of processor time, which other load does not stretch; some may be spent already."""

    def __init__(self, spent: Mapping[str, float] | None = None) -> None:
        before = spent or {}
        self.begun = time.perf_counter() - before.get("wall", 0.0), time.process_time() - before.get("processor", 0.0)

    def seconds(self) -> dict[str, float]:
        return {"wall": time.perf_counter() - self.begun[0], "processor": time.process_time() - self.begun[1]}


def run_search(steps: int, data: Path, file: Path) -> None:
    before = read(file)
    spent = Clock(before.get("seconds", {}))
    measured = measure_as("cheap", data)

    def keep(found: Search) -> None:
        last, answer, seconds = found.steps[-1], found.answer.to_string(), spent.seconds()
        print(f"{len(found.steps)}: {last.topology.to_string()} {last.measurement} {seconds}", flush=True)
        record = {"settings": SETTINGS["cheap"], "images": IMAGES, "seed": SEED, "seconds": seconds, "answer": answer}
        write_text(file, json.dumps({**record, **figures(answer), "found": found.to_json()}, indent=1) + "\n")

    known = Search.from_json(before["found"]) if before else None
    search(Space(), measured, steps=steps, seed=SEED, known=known, kept=keep)


def compare(count: int, data: Path, file: Path) -> None:
    draw, space = random.Random(0), Space()
    rows = read(file).get("topologies", [])
    for place in range(count):
        topology = space.topology([draw.randrange(len(choices)) for choices in space.dimensions])
        if place < len(rows):
            continue
        row: dict[str, Any] = {"topology": topology.to_string(), **figures(topology.to_string())}
        for name in SETTINGS:
            measured, spent = measure_as(name, data), Clock()
            row[name] = {**measured(topology).to_json(), "seconds": spent.seconds()}
            print(f"{place + 1}: {row['topology']} {name}: {row[name]}", flush=True)
        rows.append(row)
        write_text(file, json.dumps({"settings": SETTINGS, "images": IMAGES, "topologies": rows}, indent=1) + "\n")
    if len(rows) > 2:
        record = {"kendalls_tau": taus(rows), "settings": SETTINGS, "images": IMAGES, "topologies": rows}
        write_text(file, json.dumps(record, indent=1) + "\n")
        print(json.dumps(record["kendalls_tau"], indent=1))


def measure_as(name: str, data: Path) -> Callable[[Topology], Measurement]:
    """Measures topologies so, on real photographs."""
    settings = SETTINGS[name]
    size = settings["image_size"]
    images = photographs(data, size)
    return lambda topology: measure(lambda: AsViT(topology=topology, img_size=size), images=images, **settings)


def photographs(folder: Path, size: int) -> Tensor:
    """Some of a folder's, evenly spread over their names."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = np.linspace(0, len(files) - 1, IMAGES).round().astype(int)
    preprocessing = Preprocessing(size, crop_ratio=0.9)
    return torch.stack([preprocessing(decode(files[place])) for place in chosen])


def figures(topology: str) -> dict[str, int]:
    """Of the network as measured, at 224 px."""
    with torch.device("meta"):
        model = AsViT(topology=topology).eval()
    return {"params": count_params(model), "macs": count_macs(model, 224)}


def taus(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """How alike two ways to measure rank: by length, by condition, and by the sum of both ranks."""
    pairs = [("reference", "cheap"), ("reference", "cheap, drawn again"), ("cheap", "cheap, drawn again")]
    found = {}
    for one, other in pairs:
        scores = [scores_of([row[name] for row in rows]) for name in (one, other)]
        found[f"{one} against {other}"] = {
            kind: float(kendalltau(scores[0][kind], scores[1][kind]).statistic) for kind in scores[0]
        }
    return found


def scores_of(measured: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The lower the better; what could not be measured is worst."""
    length = np.array([-each["length"] for each in measured])
    condition = np.array([np.inf if each["condition"] is None else each["condition"] for each in measured])
    ranks = [np.unique(values, return_inverse=True)[1] for values in (length, condition)]
    return {"length": length, "condition": condition, "sum of ranks": ranks[0] + ranks[1]}


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


if __name__ == "__main__":
    main()
