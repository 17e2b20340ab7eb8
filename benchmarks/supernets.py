"""Two super-networks learn the digits, and their searches meet every band: twenty of MACs and five of measured latency.

    python benchmarks/supernets.py --work /tmp/supernets     # six minutes on one core; a killed one resumes

The space of each is small. What a network found in a latency band takes is measured once more, by the whole protocol.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anyvit.costs.timing import measure_latencies, measure_latency
from anyvit.data import open_data
from anyvit.data.augmentation import Augmentation
from anyvit.data.loading import evaluation_batches, steps_per_epoch, training_loader
from anyvit.data.preprocessing import Preprocessing
from anyvit.files import write_text
from anyvit.models.elasticvit_macs import macs as elasticvit_macs
from anyvit.models.elasticvit_space import Space, Stage
from anyvit.models.elasticvit_super import ElasticSuperViT
from anyvit.models.vit_resnas_layout import macs as vit_resnas_macs
from anyvit.models.vit_resnas_layout import with_classes
from anyvit.models.vit_resnas_space import space_of, stages
from anyvit.models.vit_resnas_super import ViTResNASSuper
from anyvit.scaling.design.elasticvit import CalibratedAccuracy, ElasticGenes
from anyvit.scaling.design.supernet import Band, Genes, Plan, evolve
from anyvit.scaling.design.vit_resnas import ResNASGenes, accuracy_of
from anyvit.training.objectives import Objective
from anyvit.training.objectives.banks import Banks
from anyvit.training.objectives.complexity_aware import ComplexityAware
from anyvit.training.objectives.multi_architecture import MultiArchitecture
from anyvit.training.recipes import RECIPES
from anyvit.training.trainer import train
from interleaved import write_result

CLASSES, BATCH, SEED = 10, 48, 0
RECIPE = dataclasses.replace(
    RECIPES["scratch-small"],
    **{"batch_size": BATCH, "lr": 2e-3, "smoothing": 0.0, "mixing": 0.0, "drop_path": 0.0, "ema_decay": 0.0},
    **{"padding_crop": 0, "rand_augment": 0, "precision": "float32", "threads": 1},
)
MAC_BANDS, LATENCY_BANDS = 20, 5
MAC_PLAN = Plan(population=6, generations=1, parents=3, mutants=3, children=3, attempts=2000)
LATENCY_PLAN = Plan(population=3, generations=1, parents=2, mutants=1, children=1, attempts=20)
MAC_WIDTH, LATENCY_WIDTH = 0.025, 0.1  # below the upper end, and to both sides of the middle, as shares of it
GLANCE = {"warmup_runs": 3, "warmup_s": 0.05, "runs": 15, "rounds": 3, "min_time_s": 0.1, "warn": False}
ENOUGH = 0.95

ELASTIC = Space(
    resolutions=(32,),
    stages=(
        Stage("conv", 1, False, (16, 24), (1, 2), (1,), (3, 5)),
        Stage("conv", 2, False, (16, 24), (1, 2), (3, 4), (3, 5)),
        Stage("conv", 2, True, (16, 24), (1,), (3, 4), (3, 5)),
        Stage("attention", 2, True, (16, 24), (1, 2), (2, 3), (2, 3, 4)),
        Stage("attention", 1, True, (24,), (1,), (2, 3), (2, 3, 4)),
    ),
    head_dim=8,
    head_multiplier=2,
    head_width=20,
)
_BLOCKS = stages((32, 8, [(4, 96)] * 2), (64, 8, [(8, 192)] * 2), (96, 8, [(12, 288)] * 2))
RESNAS = with_classes(((5, 32, 8), *_BLOCKS[1:]), CLASSES)  # a thin embedding: a wide one has most of the MACs at 56 px


@dataclass(frozen=True)
class System:
    """A super-network for the digits, how it trains, and how it is searched."""

    name: str
    image_size: int
    epochs: float
    build: Callable[[], Any]
    objective: Callable[[int], Objective]
    genes: Callable[[int], Genes]
    macs: Callable[[Any], float]
    worth: Callable[[Any, list, list], Callable[[Any], float]]
    ends: tuple[Hashable, Hashable]  # the smallest and the largest


def elasticvit() -> System:
    def macs(arch: Any) -> float:
        return elasticvit_macs(arch, ELASTIC, CLASSES, strict_reference=True)

    banks = Banks(ELASTIC, (0.65e6, 1.05e6, 1.45e6, 1.85e6, 2.22e6), 0.4e6, (8,) * 5, cost=macs)
    return System(
        "elasticvit",
        32,
        14,
        lambda: ElasticSuperViT(space=ELASTIC, num_classes=CLASSES),
        lambda steps: ComplexityAware(steps, banks),
        lambda seed: ElasticGenes(ELASTIC, seed),
        macs,
        CalibratedAccuracy,
        (ELASTIC.smallest, ELASTIC.largest),
    )


def vit_resnas() -> System:
    space = space_of(RESNAS)

    def macs(network_def: Any) -> float:
        return vit_resnas_macs(network_def, 56)

    def worth(model: Any, calibration: list, judged: list) -> Callable[[Any], float]:
        return lambda network_def: accuracy_of(model, network_def, judged, calibration)

    nothing = Band(macs, 0.0, 0.0)
    return System(
        "vit_resnas",
        56,
        16,
        lambda: ViTResNASSuper(network_def=RESNAS, space=space, img_size=56, num_classes=CLASSES),
        lambda steps: MultiArchitecture(steps, warmup_epochs=4),
        lambda seed: ResNASGenes(RESNAS, space, seed=seed),
        macs,
        worth,
        (ResNASGenes(RESNAS, space).draw(nothing), RESNAS),
    )


def run(system: System, work: Path) -> dict[str, Any]:
    """Train, judge both ends, search every band; each of it is done once."""
    data, preprocessing = open_data("digits"), Preprocessing(system.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        fresh = system.build()
    begun = time.process_time()
    training = train(
        fresh,
        data,
        objective=system.objective(steps_per_epoch(data.splits["train"], BATCH)),
        recipe=RECIPE,
        preprocessing=preprocessing,
        folder=work / system.name,
        epochs=system.epochs,
        seed=SEED,
        workers=0,
    )
    seconds = remembered(work / f"{system.name}-seconds.json", lambda: time.process_time() - begun)
    print(f"{system.name}: trained in {seconds:.0f} s", flush=True)
    loader = training_loader(
        data.splits["train"], preprocessing, Augmentation(), batch_size=200, seed=SEED, position=lambda: 0, workers=0
    )
    calibration = [images for (images, _), _ in zip(loader, range(4), strict=False)]
    judged = {name: list(evaluation_batches(data.splits[name], preprocessing)) for name in ("val", "test")}
    worth = {name: cache(system.worth(training.model, calibration, batches)) for name, batches in judged.items()}
    ends = {name: worth["test"](arch) for name, arch in zip(("smallest", "largest"), system.ends, strict=True)}
    print(f"{system.name}: test accuracy {ends}", flush=True)
    return {
        "image_size": system.image_size,
        "epochs": system.epochs,
        "cpu_seconds_of_training": seconds,
        "test_accuracy": ends,
        "as_specified": min(ends.values()) >= ENOUGH,
        "mac_bands": [
            remembered(work / f"{system.name}-macs-{place}.json", lambda place=place: mac_band(system, worth, place))
            for place in range(MAC_BANDS)
        ],
        "latency_bands": remembered(
            work / f"{system.name}-latency.json", lambda: latency_bands(system, training.model, worth)
        ),
    }


def remembered(file: Path, compute: Callable[[], Any]) -> Any:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(compute()))
    return json.loads(file.read_text())


def mac_band(system: System, worth: dict[str, Callable[[Any], float]], place: int) -> dict[str, Any]:
    least, most = (system.macs(arch) for arch in system.ends)
    limit = least * 1.04 + (most - least * 1.04) * place / (MAC_BANDS - 1)
    band = Band(system.macs, (1 - MAC_WIDTH) * limit, limit)
    found = evolve(system.genes(place), band, worth["val"], MAC_PLAN, seed=place)
    best, accuracy = found.ranked()[0]
    result = {"low": band.low, "high": band.high, "macs": system.macs(best), "inside": band.holds(best)}
    result |= {"all_scored_inside": all(map(band.holds, found.scores)), "scored": len(found.scores)}
    result |= {"val_accuracy": accuracy, "test_accuracy": worth["test"](best), "arch": best}
    print(f"{system.name}: {limit:.3g} MACs: {result['macs']:.3g}, {accuracy:.1%} of {len(found.scores)}", flush=True)
    return result


def latency_bands(system: System, model: Any, worth: dict[str, Callable[[Any], float]]) -> list[dict[str, Any]]:
    """Bands around what random networks take, from a fast one to a slow one."""
    image = torch.randn(1, 3, system.image_size, system.image_size)
    genes, everything = system.genes(100), Band(system.macs, 0.0, float("inf"))
    known = dict.fromkeys((*system.ends, *(genes.mutate(genes.draw(everything)) for _ in range(14))))
    networks = {str(place): model.extract(arch).eval() for place, arch in enumerate(known)}
    timed = measure_latencies(networks, lambda: image, **GLANCE)
    milliseconds = {arch: 1e3 * latency.seconds for arch, latency in zip(known, timed.values(), strict=True)}

    def cost(arch: Any) -> float:
        if arch not in milliseconds:
            milliseconds[arch] = 1e3 * measured(model.extract(arch), image, **GLANCE)
        return milliseconds[arch]

    results = []
    for place, middle in enumerate(np.quantile(list(milliseconds.values()), np.linspace(0.1, 0.9, LATENCY_BANDS))):
        low, high = float(middle * (1 - LATENCY_WIDTH)), float(middle * (1 + LATENCY_WIDTH))
        band = Band(cost, low, high, "ms")
        found = evolve(system.genes(200 + place), band, worth["val"], LATENCY_PLAN, seed=place, known=known)
        best, accuracy = found.ranked()[0]
        again = 1e3 * measured(model.extract(best), image)
        result = {"low_ms": low, "high_ms": high, "searched_ms": cost(best), "again_ms": again}
        result |= {"inside": band.holds(best), "inside_again": low <= again <= high}
        result |= {"scored": len(found.scores), "val_accuracy": accuracy, "arch": best}
        print(f"{system.name}: {low:.2f} to {high:.2f} ms: {cost(best):.2f}, again {again:.2f} ms", flush=True)
        results.append(result)
    return results


def measured(network: nn.Module, image: torch.Tensor, **protocol: Any) -> float:
    return measure_latency(network.eval(), lambda: image, **protocol).seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where trainings and searches keep their state")
    work = parser.parse_args().work
    torch.set_num_threads(1)
    systems = {make.__name__: run(make(), work) for make in (elasticvit, vit_resnas)}
    write_result("supernets", {"data": "digits", "seed": SEED, "systems": systems})


if __name__ == "__main__":
    main()
