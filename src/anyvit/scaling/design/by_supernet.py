"""Design by one training: a super-network learns the images, and its best subnetwork inside the budget is cut out.

The super-network is chosen for the budget: about twice as dear at full size. Subnetworks are proposed by their MACs, at
the pace that a few measured ones tell, and judged on validation images with BatchNorm statistics of their own. What is
ranked was measured. The answer comes with its trained weights.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from anyvit.data.augmentation import Augmentation
from anyvit.data.loading import evaluation_batches, steps_per_epoch, training_loader
from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import BudgetError
from anyvit.scaling.design.brief import Brief
from anyvit.scaling.design.by_score import out_of_reach
from anyvit.scaling.design.finding import Designed, Finding
from anyvit.scaling.design.supernet import Band, Evolution, Genes, Plan, evolve
from anyvit.scaling.form import Form
from anyvit.training.batch_norm import recalibrate
from anyvit.training.objectives import Objective
from anyvit.training.recipes import RECIPES, recipe_for
from anyvit.training.trainer import train

Arch = TypeVar("Arch", bound=Hashable)

EPOCHS = 30.0
PLAN = Plan(population=24, generations=5, parents=8, mutants=6, children=6, attempts=2000)
FULL = 0.85
"""The share of the budget that a subnetwork is to use at least, by its MACs."""

ROOM = 2.0
"""How much of the budget a super-network takes at full size, at least where there is one so large."""

PACED, FINALISTS, TRIES = 6, 4, 4
JUDGES, CALIBRATION = 1000, 8
"""Validation images that judge a subnetwork, and batches that its statistics are taken of."""


@dataclass(frozen=True)
class SuperNetwork(Generic[Arch]):
    """One that may be trained: how it is built, learns and is searched.

    Args:
        image_size: Pixels a side.
        build: The whole, untrained.
        objective: By steps in an epoch and epochs.
        genes: By a seed.
        macs: Of a subnetwork.
        form: Of a subnetwork.
        ends: The smallest and the largest subnetwork.
    """

    image_size: int
    build: Callable[[], nn.Module]
    objective: Callable[[int, float], Objective]
    genes: Callable[[int], Genes[Arch]]
    macs: Callable[[Arch], float]
    form: Callable[[Arch], Form]
    ends: tuple[Arch, Arch]


def find_in(candidates: Sequence[SuperNetwork[Arch]], brief: Brief) -> Finding:
    """Train the smallest of some super-networks that leaves room for choice, and search it.

    Args:
        candidates: From the smallest to the largest.
        brief: With images.

    Raises:
        BudgetError: No subnetwork of any of them keeps the budget.
        Interrupted: Ctrl-C. The same call goes on.
    """
    assert brief.dataset is not None
    chosen, pace = _with_room(candidates, brief)
    model = _trained(chosen, brief)
    judge = _judge(model, chosen, brief)
    aim, found = 1.0, list[Designed]()
    for _ in range(TRIES):
        evolution = _searched(chosen, pace, judge, aim, brief)
        some = _measured(chosen, evolution, brief)
        found += some
        if any(designed.fits for designed in some):
            break
        aim /= 1.02 * min(brief.load(designed.costs) for designed in some)
    else:
        raise BudgetError(out_of_reach(found, brief))
    ranking = sorted(found, key=lambda designed: (not designed.fits, -(designed.worth or 0.0)))
    best = next(arch for arch in evolution.scores if name_of(chosen.form(arch)) == ranking[0].name)
    return Finding(
        "accuracy as a subnetwork, without training of its own",
        ranking,
        path=[{"generation": g, "best": worth} for g, worth in enumerate(evolution.best_by_generation)],
        notes=[
            f"a super-network of {sum(p.numel() for p in model.parameters()):,} parameters learned "
            f"{brief.epochs or EPOCHS:g} epochs; {len(evolution.scores)} of its subnetworks were judged"
        ],
        weights=_cut(model, best, chosen, brief).state_dict(),
    )


def name_of(form: Form) -> str:
    """A subnetwork by its family and a few digits that stand for the rest: whole, it fills lines."""
    return f"{form.name}-{hashlib.sha256(json.dumps(form.to_json()).encode()).hexdigest()[:6]}"


def _with_room(
    candidates: Sequence[SuperNetwork[Arch]], brief: Brief
) -> tuple[SuperNetwork[Arch], Callable[[float], float]]:
    """The super-network to train, and what share of the budget so many MACs probably take in it."""
    for chosen in candidates:
        largest = brief.load(_looked_at(chosen, chosen.ends[1], brief).costs)
        if largest >= ROOM:
            break
    smallest = _looked_at(chosen, chosen.ends[0], brief)
    if brief.load(smallest.costs) > 1:
        raise BudgetError(out_of_reach([smallest], brief))
    return chosen, _pace(chosen, brief)


def _pace(chosen: SuperNetwork[Arch], brief: Brief) -> Callable[[float], float]:
    """A line through the loads of both ends and a few others, in logarithms: loads grow with MACs in each."""
    genes = chosen.genes(brief.seed)
    least, most = (chosen.macs(arch) for arch in chosen.ends)
    between = np.geomspace(least, most, PACED)[1:-1]
    archs = [genes.draw(Band(chosen.macs, 0.9 * macs, 1.1 * macs)) for macs in between]
    points = [(chosen.macs(arch), brief.load(_looked_at(chosen, arch, brief).costs)) for arch in (*chosen.ends, *archs)]
    sizes, loads = np.log(np.array(points)).T
    slope, start = np.polyfit(sizes, loads, 1)
    return lambda macs: math.exp(start + slope * math.log(macs))


def _looked_at(chosen: SuperNetwork[Arch], arch: Arch, brief: Brief) -> Designed:
    form = chosen.form(arch)
    return brief.measured_form(name_of(form), form)


def _trained(chosen: SuperNetwork[Arch], brief: Brief) -> Any:
    assert brief.dataset is not None
    usual = RECIPES[recipe_for(brief.dataset.image_size, trained=False)]
    recipe = replace(usual, ema_decay=0.0, drop_path=0.0, mixing=0.0)  # subnetworks regularize each other
    epochs = brief.epochs or EPOCHS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(brief.seed)
        fresh = chosen.build()
    steps = steps_per_epoch(brief.dataset.splits["train"], recipe.batch_size)
    training = train(
        fresh,
        brief.dataset,
        objective=chosen.objective(steps, epochs),
        recipe=recipe,
        preprocessing=Preprocessing(chosen.image_size),
        folder=brief.folder / "supernet",
        epochs=epochs,
        seed=brief.seed,
        progress=brief.progress,
    )
    return training.model


def _judge(model: Any, chosen: SuperNetwork[Arch], brief: Brief) -> Callable[[Arch], float]:
    """The accuracy of a subnetwork on validation images."""
    assert brief.dataset is not None
    judges = list(evaluation_batches(brief.dataset.splits["val"].sample(JUDGES), Preprocessing(chosen.image_size)))

    @torch.no_grad()
    def judged(arch: Arch) -> float:
        network = _cut(model, arch, chosen, brief)
        right = torch.cat([network(images).argmax(1) == labels for images, labels in judges])
        return right.float().mean().item()

    return judged


def _cut(model: Any, arch: Arch, chosen: SuperNetwork[Arch], brief: Brief) -> nn.Module:
    """A subnetwork with BatchNorm statistics of its own, in evaluation mode."""
    network: nn.Module = model.extract(arch)
    recalibrate(network, _calibration(chosen, brief))
    return network.eval()


def _calibration(chosen: SuperNetwork[Arch], brief: Brief) -> list[Tensor]:
    assert brief.dataset is not None
    loader = training_loader(
        brief.dataset.splits["train"],
        Preprocessing(chosen.image_size),
        Augmentation(),
        batch_size=64,
        seed=brief.seed,
        position=lambda: 0,
        workers=0,
    )
    return [images for images, _ in islice(loader, CALIBRATION)]


def _searched(
    chosen: SuperNetwork[Arch],
    pace: Callable[[float], float],
    judge: Callable[[Arch], float],
    aim: float,
    brief: Brief,
) -> Evolution[Arch]:
    return evolve(
        chosen.genes(brief.seed),
        Band(lambda arch: pace(chosen.macs(arch)), FULL * aim, aim, "of the budget"),
        judge,
        PLAN,
        seed=brief.seed,
        stop=lambda: brief.is_late,
        progress=brief.progress,
    )


def _measured(chosen: SuperNetwork[Arch], evolution: Evolution[Arch], brief: Brief) -> list[Designed]:
    found = []
    for arch, worth in evolution.ranked()[:FINALISTS]:
        error = math.sqrt(worth * (1 - worth) / JUDGES)
        found.append(replace(_looked_at(chosen, arch, brief), worth=worth, spread=error))
    return found
