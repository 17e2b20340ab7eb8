"""A search that measures a quarter at most, and finds what measuring all would have found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from anyvit.costs.budget import Budget
from anyvit.protocols import Stage
from anyvit.scaling import explore
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.explore import FEW, Explorer
from anyvit.scaling.search import choose
from anyvit.scaling.space import Space


@dataclass
class Lever:
    name: str
    stage: Stage = Stage.SHAPE

    def conflicts(self):
        return {}


def space(*settings: int, runtimes: int = 3) -> Space:
    """Levers with so many settings each, and runtimes."""
    levers = tuple(Lever(f"lever{place}") for place in range(len(settings)))
    steps = [
        tuple(Step(lever.name, {lever.name: strength} if strength else {}) for strength in range(count))
        for lever, count in zip(levers, settings, strict=True)
    ]
    return Space(levers, (*steps, tuple(Step(name) for name in ("torch", "fast", "exact", "slow")[:runtimes])))


@dataclass
class World:
    """What candidates cost and are worth: close to a product, with quirks of their own, as on a machine."""

    space: Space
    seed: int = 0
    quirk: float = 0.05
    results: dict = field(default_factory=dict)
    failures: dict = field(default_factory=dict)
    broken: str = "none"

    def __post_init__(self):
        self.reference = next(iter(self.space))
        self.conditions = SimpleNamespace(image_size=8)
        self.workshop = SimpleNamespace(release=lambda keep: None)
        random = np.random.default_rng(self.seed)
        self.speed = {name: random.uniform(0.6, 0.95) for name in ("lever0", "lever1", "lever2")}
        self.loss = {name: random.uniform(0.005, 0.05) for name in self.speed}
        self.runtime = {"torch": 1.0, "fast": 0.4, "exact": 0.7, "slow": 1.3}

    def result(self, candidate: Candidate) -> Result:
        random = np.random.default_rng([self.seed, *candidate.id.encode()])
        strengths = {step.name: step.setting[step.name] for step in candidate.active}
        latency = self.runtime[candidate.backend.name] * math.prod(self.speed[n] ** s for n, s in strengths.items())
        accuracy = 0.9 - sum(self.loss[name] * strength for name, strength in strengths.items())
        accuracy -= 0.01 * (candidate.backend.name == "fast")
        costs = {"latency": latency * math.exp(self.quirk * random.normal()), "params": 1.0}
        return Result(candidate, costs, float(np.clip(accuracy + 0.003 * random.normal(), 0, 1)))

    def measure(self, wanted):
        for candidate in wanted:
            if candidate.backend.name == self.broken:
                self.failures[candidate.id] = Result(candidate), "cannot be built"
            else:
                self.results.setdefault(candidate.id, self.result(candidate))


def explored(world: World, budget: str | None, **more) -> Explorer:
    explorer = Explorer(world.space, world, Budget.parse(budget), **more)
    explorer._count = lambda candidate: math.prod(0.8 ** step.setting[step.name] for step in candidate.active)
    explorer.run()
    return explorer


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.15, 0.4, 0.7])
def test_a_quarter_is_enough_to_be_within_half_a_point(seed, share):
    world = World(space(4, 5, 4), seed)
    budget = f"latency<={share}s"
    explored(world, budget)
    everything = [world.result(candidate) for candidate in world.space]
    found, best = (choose(results, Budget.parse(budget)) for results in (list(world.results.values()), everything))
    assert len(world.results) <= math.ceil(len(everything) / 4)
    assert found.accuracy >= best.accuracy - 0.005 - 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_with_a_bound_on_accuracy_alone_the_fastest_is_looked_for(seed):
    world = World(space(4, 5, 4), seed)
    explored(world, "accuracy>=0.85")
    everything = [world.result(candidate) for candidate in world.space]
    found, best = (choose(r, Budget.parse("accuracy>=0.85")) for r in (list(world.results.values()), everything))
    assert len(world.results) <= math.ceil(len(everything) / 4)
    assert found.costs["latency"] <= 1.2 * best.costs["latency"]


def test_few_candidates_are_all_measured():
    world = World(space(2, 2, runtimes=2))
    explored(world, "latency<=0.5s")
    assert set(world.results) == {candidate.id for candidate in world.space}


def test_the_unshrunk_model_is_measured_on_every_runtime_that_counts():
    world = World(space(4, 5, 4))
    explored(world, "latency<=0.3s")
    unshrunk = {r.plain.backend.name for r in world.results.values() if not r.plain.active}
    assert {result.plain.backend.name for result in world.results.values()} == unshrunk


def test_what_cannot_be_built_counts_and_is_not_tried_again():
    world = World(space(3, 3), broken="fast")
    explorer = explored(world, "latency<=0.3s")
    assert world.failures
    assert len(world.results) + len(world.failures) <= max(FEW, explorer.allowed)


def test_time_ends_the_search_after_any_batch():
    world = World(space(4, 5, 4))
    explored(world, "latency<=0.3s", out_of_time=lambda: len(world.results) >= 4)
    assert 4 <= len(world.results) <= 8


def test_what_is_known_is_not_measured_again():
    world = World(space(4, 5, 4))
    explored(world, "latency<=0.3s")
    again = World(world.space, results=dict(world.results))
    explored(again, "latency<=0.3s")
    assert {id: again.results[id] for id in world.results} == world.results
    assert len(again.results) <= len(world.results) + 4


def test_of_very_many_candidates_some_are_proposed(monkeypatch):
    monkeypatch.setattr(explore, "ENUMERABLE", 50)
    monkeypatch.setattr(explore, "_PROPOSING", 80)
    world = World(space(4, 5, 4))
    explorer = explored(world, "latency<=0.2s")
    assert explorer._all is None
    found = choose(list(world.results.values()), Budget.parse("latency<=0.2s"))
    everything = [world.result(candidate) for candidate in world.space]
    assert found.accuracy >= choose(everything, Budget.parse("latency<=0.2s")).accuracy - 0.02
