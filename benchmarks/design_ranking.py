"""Does the training-free score rank shapes of ViT as training does? Random shapes, each trained briefly on CIFAR-10.

    python benchmarks/design_ranking.py train --work /tmp/ranking     # an hour and a half on one core; resumes
    python benchmarks/design_ranking.py score --work /tmp/ranking     # the scores, Kendall's tau and its interval

The score's weights were fitted to the first shapes, on which its parts were chosen too. The claim is about the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

from anyvit.costs.counts import Specification, vit_macs, vit_params
from anyvit.data import open_data
from anyvit.data.preprocessing import Preprocessing
from anyvit.scaling.design.score import IMAGES, WEIGHTS, ShapeScore
from anyvit.scaling.design.shape import name_of
from anyvit.scaling.design.short_training import ShortTraining
from anyvit.scaling.trials import quick_images
from anyvit.training.recipes import RECIPES
from interleaved import write_result
from small_data import few

IMAGES_A_CLASS, EPOCHS, DRAWS = 1000, 5, 3


def shapes() -> tuple[list[Specification], list[Specification]]:
    """Random shapes for 32 px: those that the score was fitted to, and those that it is judged on."""
    fitted = [*_some((4, 8), 27, seed=0, most=45e6), *_some((2,), 5, seed=0, most=45e6)]
    return fitted, _some((2, 4, 8), 24, seed=1, most=25e6)


def _some(patches: tuple[int, ...], count: int, *, seed: int, most: float) -> list[Specification]:
    """Uniform over each factor among those whose MACs lie in the range."""
    draw = random.Random(seed)
    found: list[Specification] = []
    while len(found) < count:
        spec = Specification(
            image_size=32,
            patch_size=draw.choice(patches),
            depth=draw.randint(1, 14),
            heads=draw.randint(1, 8),
            head_dim=draw.choice((16, 24, 32, 48, 64)),
            mlp_ratio=draw.choice((1.0, 2.0, 3.0, 4.0, 6.0)),
            num_classes=10,
        )
        if 4e6 <= vit_macs(spec) <= most and spec not in found:
            found.append(spec)
    return found


def evaluator(work: Path, data: str) -> ShortTraining:
    recipe = dataclasses.replace(
        RECIPES["scratch-small"],
        precision="float32",
        threads=1,
        rand_augment=0,
        mixing=0.0,  # a short schedule
    )
    return ShortTraining(few(open_data(data), IMAGES_A_CLASS), work, EPOCHS, recipe=recipe)


def train(accuracy_of: ShortTraining) -> None:
    fitted, judged = shapes()
    for spec in (*fitted, *judged):
        begun = time.process_time()
        accuracy = accuracy_of(spec)
        seconds = time.process_time() - begun
        print(
            f"{name_of(spec):24} {vit_macs(spec) / 1e6:5.1f} MMACs {vit_params(spec) / 1e6:5.2f} M "
            f"{accuracy.value:.3f} +- {accuracy.standard_error:.3f} {seconds:.0f} s",
            flush=True,
        )


def score(accuracy_of: ShortTraining) -> None:
    batches = quick_images(accuracy_of.dataset.splits["train"], Preprocessing(32), IMAGES)
    score_of = ShapeScore(torch.cat([images for images, _ in batches]))
    groups = {}
    for name, specs in zip(("fitted to", "judged on"), shapes(), strict=True):
        accuracies = [accuracy_of(spec).value for spec in specs]
        rankings = {
            "score": [score_of(spec, DRAWS).value for spec in specs],
            "score of one draw": [score_of(spec, 1).value for spec in specs],
            "parameters": [vit_params(spec) for spec in specs],
            "MACs": [vit_macs(spec) for spec in specs],
            "length alone": [score_of.measured(spec, 0)["length"] for spec in specs],
            "condition alone": [-score_of.measured(spec, 0)["condition"] for spec in specs],
        }
        groups[name] = {
            "tau": {kind: tau(values, accuracies) for kind, values in rankings.items()},
            "shapes": {
                name_of(spec): {
                    "accuracy": accuracy,
                    "macs": vit_macs(spec),
                    "params": vit_params(spec),
                    "score": value,
                    "measured": [dict(score_of.measured(spec, draw)) for draw in range(DRAWS)],
                }
                for spec, accuracy, value in zip(specs, accuracies, rankings["score"], strict=True)
            },
        }
        print(name, {kind: f"{found['tau']:.3f} {found['interval']}" for kind, found in groups[name]["tau"].items()})
    result = {
        "data": f"CIFAR-10, {IMAGES_A_CLASS} training images a class, {EPOCHS} epochs, seed 0; 5,000 validation images",
        "weights": WEIGHTS,
        **groups,
    }
    write_result("design_ranking", result)


def tau(values: list[float], accuracies: list[float]) -> dict[str, object]:
    """Kendall's tau and its 95 % interval over resamples of the shapes."""
    random_ = np.random.default_rng(0)
    pairs = np.array([values, accuracies])
    resampled = [kendalltau(*pairs[:, random_.integers(0, len(values), len(values))]).statistic for _ in range(2000)]
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return {"tau": float(kendalltau(*pairs).statistic), "interval": [round(float(low), 3), round(float(high), 3)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "score"))
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    {"train": train, "score": score}[asked.part](evaluator(asked.work, asked.data))


if __name__ == "__main__":
    main()
