"""What super-networks share: a search among their subnetworks that stays inside a band of cost, and always ends.

A super-network's own file says how its subnetworks are drawn and varied (`Genes`); here is the loop around it. Every
repetition is bounded: where nothing fits the band, the error says what comes nearest.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from anyvit.errors import BudgetError, SettingError
from anyvit.protocols import Event, Progress, silent

Arch = TypeVar("Arch", bound=Hashable)
"""A subnetwork as plain nested tuples."""


@dataclass(frozen=True)
class Band(Generic[Arch]):
    """The costs that a subnetwork may have: any cost of the library, in base units.

    Args:
        cost: Of a subnetwork.
        low: The least.
        high: The most.
        name: What it is, in words, with its unit: for messages.

    Raises:
        SettingError: `low` is above `high`.
    """

    cost: Callable[[Arch], float]
    low: float
    high: float
    name: str = "MACs"

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise SettingError(f"a band of {self.name} from {self.low:g} to {self.high:g} holds nothing")

    def holds(self, arch: Arch) -> bool:
        """Whether the subnetwork is inside."""
        return self.low <= self.cost(arch) <= self.high


class Genes(Protocol[Arch]):
    """How the subnetworks of a super-network are drawn and varied. What it gives need not lie in a band."""

    def draw(self, band: Band[Arch]) -> Arch:
        """A random one; where there is a way to steer it into the band, it is taken."""

    def mutate(self, parent: Arch) -> Arch:
        """One that differs from its parent in some genes."""

    def cross(self, mother: Arch, father: Arch) -> Arch:
        """One with genes of both."""


def into_band(propose: Callable[[], Arch], band: Band[Arch], attempts: int) -> Arch:
    """The first proposal inside the band.

    Raises:
        BudgetError: None of `attempts` was; it names the nearest.
    """
    nearest = math.inf
    for _ in range(attempts):
        arch = propose()
        if band.holds(arch):
            return arch
        nearest = min(nearest, band.cost(arch), key=lambda cost: _off(cost, band))
    raise BudgetError(
        f"none of {attempts} subnetworks has {band.low:g} to {band.high:g} {band.name}: the nearest has {nearest:g}. "
        f"Ask for about {nearest:g} {band.name}."
    )


def _off(cost: float, band: Band[Arch]) -> float:
    return max(band.low - cost, cost - band.high)


@dataclass(frozen=True)
class Plan:
    """How long an evolution searches, and how widely.

    Args:
        population: Subnetworks that it starts with.
        generations: After the start.
        parents: The best so far, which the next generation comes from.
        mutants: A generation.
        children: A generation, of two parents each.
        attempts: Proposals for one place in the population, at most.
    """

    population: int = 64
    generations: int = 10
    parents: int = 16
    mutants: int = 16
    children: int = 16
    attempts: int = 1000


@dataclass
class Evolution(Generic[Arch]):
    """Every subnetwork that was scored, in the order in which it was, and the best score after each generation."""

    scores: dict[Arch, float] = field(default_factory=dict)
    best_by_generation: list[float] = field(default_factory=list)

    def ranked(self) -> list[tuple[Arch, float]]:
        """The best first; among equals the one found first."""
        return sorted(self.scores.items(), key=lambda item: -item[1])


def evolve(
    genes: Genes[Arch],
    band: Band[Arch],
    score: Callable[[Arch], float],
    plan: Plan,
    *,
    seed: int = 0,
    known: Iterable[Arch] = (),
    evolution: Evolution[Arch] | None = None,
    kept: Callable[[Evolution[Arch]], None] = lambda evolution: None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
) -> Evolution[Arch]:
    """Search the subnetworks inside a band for the one that scores highest: constrained evolution.

    Args:
        genes: Of the super-network.
        band: What is inside may be scored; nothing else is.
        score: Higher is better. Dear: each subnetwork is scored once.
        plan: How long and how widely.
        seed: The choice of parents follows from it.
        known: Subnetworks to start with, where they are inside the band.
        evolution: What an interrupted search had scored; it goes on from its last whole generation.
        kept: Called after each score with all that is known, to be written.
        stop: Asked before each score but the first: the search then ends with what it has.
        progress: Told how far it is.

    Raises:
        BudgetError: No subnetwork inside the band was found; it names the nearest.
        SettingError: A score is not finite; it names the subnetwork.
    """
    evolution = evolution or Evolution()
    while len(evolution.best_by_generation) <= plan.generations:
        generation = len(evolution.best_by_generation)
        chance = random.Random(f"{seed}/{generation}")
        new = (
            _beginners(genes, band, plan, known)
            if generation == 0
            else _offspring(genes, band, plan, evolution, chance)
        )
        for place, arch in enumerate(new):
            done = (generation + place / len(new)) / (plan.generations + 1)
            progress(Event("search", f"generation {generation}", done))
            if arch in evolution.scores:
                continue
            if evolution.scores and stop():
                return evolution
            evolution.scores[arch] = _checked(score(arch), arch)
            kept(evolution)
        evolution.best_by_generation.append(max(evolution.scores.values()))
    return evolution


def _beginners(genes: Genes[Arch], band: Band[Arch], plan: Plan, known: Iterable[Arch]) -> Sequence[Arch]:
    """Distinct ones; fewer than asked for where the band holds few.

    Raises:
        BudgetError: It holds none that was found.
    """
    found = dict.fromkeys(arch for arch in known if band.holds(arch))
    for _ in range(plan.population - len(found)):
        try:
            found[into_band(lambda: genes.draw(band), band, plan.attempts)] = None
        except BudgetError:
            if not found:
                raise
            break
    return [*found][: plan.population]


def _offspring(
    genes: Genes[Arch], band: Band[Arch], plan: Plan, evolution: Evolution[Arch], chance: random.Random
) -> Sequence[Arch]:
    """New ones only; fewer than asked for where all that is near is known."""
    parents = [arch for arch, _ in evolution.ranked()[: plan.parents]]
    ways: list[tuple[int, Callable[[], Arch]]] = [
        (plan.mutants, lambda: genes.mutate(chance.choice(parents))),
        (plan.children, lambda: genes.cross(chance.choice(parents), chance.choice(parents))),
    ]
    found: dict[Arch, None] = {}
    for count, propose in ways:
        for _ in range(count):
            new = _unseen(propose, band, plan.attempts, {*evolution.scores, *found})
            if new is not None:
                found[new] = None
    return [*found]


def _unseen(propose: Callable[[], Arch], band: Band[Arch], attempts: int, seen: set[Arch]) -> Arch | None:
    for _ in range(attempts):
        arch = propose()
        if arch not in seen and band.holds(arch):
            return arch
    return None


def _checked(score: float, arch: Arch) -> float:
    if not math.isfinite(score):
        raise SettingError(f"the evaluator returned {score} for {arch}")
    return score
