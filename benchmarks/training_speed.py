"""Training images a second of the elastic model, against timm's plain ViT of full size in the same loop.

    python benchmarks/training_speed.py

One step is what the objective of a run computes, its gradients, their clipping and AdamW; loading images is left out.
The uniform choice trains smaller subnetworks at most steps, so it should be faster; the elastic model at full size in
every step shows what the slicing itself costs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from anyvit.models import PRESETS, create_model
from anyvit.training.objectives import Classification, ElasticClassification, Objective
from anyvit.training.objectives.sampler import HeadSampler
from interleaved import Effort, Sides, Spread, images, plain_vit, ratio, times, write_result

PRESET, BATCH, CLASSES = "hydravit_small_patch4_32", 32, 1000


class Loop:
    """Trains a model on one batch over and over; a call is one pass over `steps`, which the objective sees in turn."""

    def __init__(self, model: nn.Module, objective: Objective, steps: list[int]) -> None:
        self.model, self.objective, self.steps = model.train(), objective, steps
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.images = images(PRESET, BATCH)
        labels = torch.arange(BATCH) % CLASSES
        self.targets = nn.functional.one_hot(labels, CLASSES).float()

    def __call__(self) -> None:
        for step in self.steps:
            self.optimizer.zero_grad()
            loss, _ = self.objective.loss(self.model, self.images, self.targets, step=step)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()


def one_of_each(heads: tuple[int, ...]) -> list[int]:
    """Steps at which the uniform choice draws each number of heads once, so that a short segment is not skewed."""
    sampler = HeadSampler(heads, seed=0)
    drawn = [sampler.draw(step) for step in range(100)]
    return sorted(drawn.index(k) for k in heads)


def sides() -> Sides:
    """The three loops, each on weights of its own."""
    full = PRESETS[PRESET].num_heads
    heads = create_model(PRESET).elastic_heads
    steps = one_of_each(heads)
    always_full = ElasticClassification("weighted", weights=(0,) * (len(heads) - 1) + (1,))
    return {
        "plain": Loop(plain_vit(PRESET, full), Classification(), steps),
        "uniform": Loop(create_model(PRESET), ElasticClassification("uniform", seed=0), steps),
        "always full": Loop(create_model(PRESET), always_full, steps),
    }


def main() -> None:
    """Time the three loops in turn, and keep the result."""
    effort, quick = Effort.asked(__doc__)
    series = times(sides, replace(effort, turns=min(effort.turns, 3)))
    speed = {name: ratio(series["plain"], series[name]) for name in ("uniform", "always full")}
    for name, spread in speed.items():
        print(f"elastic, {name} / plain: {spread}")
    trained = BATCH * len(one_of_each(create_model(PRESET).elastic_heads))
    result = {
        "preset": PRESET,
        "batch": BATCH,
        "speed_uniform_over_plain": speed["uniform"],
        "speed_always_full_over_plain": speed["always full"],
        "images_a_second": {name: Spread.of([trained / t for t in taken]) for name, taken in series.items()},
    }
    write_result("training_speed", result, quick=quick)


if __name__ == "__main__":
    main()
