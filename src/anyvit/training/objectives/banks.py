"""Which subnetworks of a conflict-aware super-network train together (ElasticViT, arXiv 2303.09730, sections 4.2, 4.3).

Those of a step cost nearly the same: they come from one bank, and the bank wanders from step to step. Of the
subnetworks in a bank those come more often that did well, or that are likely to: wide and shallow ones.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from anyvit.errors import BudgetError, SettingError
from anyvit.models.elasticvit_macs import macs
from anyvit.models.elasticvit_space import MINIMUMS, PUBLISHED, Arch, Space

ATTEMPTS = 50_000  # of a draw; in the published space the rarest bank takes a thousand
TRIES = 5  # draws that the preference score chooses from
FIRST_SHARE, MORE_SHARE, EPOCHS_TO_MORE = 0.2, 0.15, 100  # how often a remembered subnetwork comes


@dataclass(frozen=True)
class Banks:
    """Levels of cost, each with room for what was learned about its subnetworks.

    Args:
        space: Of the super-network.
        targets: The least cost in each bank, rising.
        width: A bank's costs go from its target to its target plus this.
        capacities: How many subnetworks each bank remembers. None: 150 each.
        minimums: Up to which target which network is the least that is worth training; rising. Empty: the smallest of
            the space.
        cost: Of a subnetwork. None: its authors' estimate of MACs, for 1000 classes.
        name: Of the cost; it tells runs apart.

    Raises:
        SettingError: No banks, targets that do not rise, or capacities of another number.
    """

    space: Space
    targets: tuple[float, ...]
    width: float
    capacities: tuple[int, ...] | None = None
    minimums: tuple[tuple[float, Arch], ...] = ()
    cost: Callable[[Arch], float] | None = field(default=None, repr=False)
    name: str = "MACs"

    def __post_init__(self) -> None:
        if not self.targets or list(self.targets) != sorted(set(self.targets)):
            raise SettingError(f"targets of banks must rise, and there must be one: got {list(self.targets)}")
        if self.capacities is None:
            object.__setattr__(self, "capacities", (150,) * len(self.targets))
        if len(self.capacities or ()) != len(self.targets):
            raise SettingError(f"each of {len(self.targets)} banks has a capacity: got {list(self.capacities or ())}")
        if self.cost is None:
            object.__setattr__(self, "cost", partial(macs, space=self.space, strict_reference=True))

    def cost_of(self, arch: Arch) -> float:
        """What a subnetwork costs."""
        assert self.cost is not None
        return self.cost(arch)

    def holds(self, bank: int, arch: Arch) -> bool:
        """Whether the subnetwork belongs to that bank."""
        return 0 <= self.cost_of(arch) - self.targets[bank] <= self.width

    def least(self, target: float) -> Arch:
        """The least network that is worth training where subnetworks of that cost are trained."""
        fitting = (arch for up_to, arch in self.minimums if target <= up_to + self.width)
        return next(fitting, self.minimums[-1][1] if self.minimums else self.space.smallest)

    def draw(self, bank: int, chance: random.Random) -> Arch:
        """A random subnetwork of a bank, uniform among those that are nowhere smaller than its least one.

        Raises:
            BudgetError: None was found; it names the nearest.
        """
        space = _above(self.space, self.least(self.targets[bank]))
        nearest = math.inf
        for _ in range(ATTEMPTS):
            arch = space.draw(chance)
            if self.holds(bank, arch):
                return arch
            nearest = min(nearest, self.cost_of(arch), key=lambda cost: abs(cost - self.targets[bank]))
        raise BudgetError(
            f"none of {ATTEMPTS} subnetworks has {self.targets[bank]:g} to {self.targets[bank] + self.width:g} "
            f"{self.name}: the nearest has {nearest:g}. Give banks that the space reaches."
        )

    def preference(self, arch: Arch, anchor: Arch) -> float:
        """Low where the attention stages are wider and shallower than those of `anchor`.

        It is the cost with the anchor's widths there, less the cost with its depths.
        """
        own, other = self.space.outline(arch), self.space.outline(anchor)
        first = sum(stage.is_conv for stage in self.space.stages)
        narrow = own._replace(channels=own.channels[:first] + other.channels[first:])
        shallow = own._replace(depths=own.depths[:first] + other.depths[first:])
        return self.cost_of(self.space.expand(narrow)) - self.cost_of(self.space.expand(shallow))


@cache
def _above(space: Space, least: Arch) -> Space:
    return space.above(least)


_MEGA = 1e6
PUBLISHED_BANKS = Banks(
    space=PUBLISHED,
    targets=tuple(_MEGA * target for target in (100, 200, 300, 400, 500, 700, 900, 1200)),
    width=20 * _MEGA,
    capacities=(150,) * 4 + (50,) * 4,
    minimums=tuple((_MEGA * up_to, arch) for up_to, arch in MINIMUMS.items()),
)
"""As the published super-network was trained."""


class BankWalk:
    """The bank of each step: from the first one on, each move stays or goes to a neighbour, by the seed alone.

    Args:
        banks: How many there are.
        seed: Of Python's generator.
        start: The bank before the first move.
    """

    def __init__(self, banks: int, seed: int, start: int = 0) -> None:
        self.banks = banks
        self._random = random.Random(seed)
        self._visited = [start]

    def after(self, moves: int) -> int:
        """The bank after so many moves."""
        while len(self._visited) <= moves:
            here = self._visited[-1]
            ways = [0, 0, 1] if here == 0 else [-1, 0, 0] if here == self.banks - 1 else [-1, 0, 1]
            self._visited.append(min(here + self._random.choice(ways), self.banks - 1))
        return self._visited[moves]


class Memory:
    """What was learned of the subnetworks in a bank: the best so far, each with its score, higher being better."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.scores: dict[Arch, float] = {}

    def offer(self, arch: Arch, score: float) -> None:
        """Remember it, in the place of the worst one where there is no room, if it is better."""
        if arch not in self.scores and len(self.scores) >= self.capacity:
            worst = min(self.scores, key=self.scores.__getitem__)
            if score <= self.scores[worst]:
                return
            del self.scores[worst]
        self.scores[arch] = score

    def best(self) -> Arch | None:
        return max(self.scores, key=self.scores.__getitem__, default=None)

    def pick(self, chance: random.Random) -> Arch:
        """One of them, in proportion to the exponential of its score."""
        most = max(self.scores.values())
        return chance.choices([*self.scores], [math.exp(score - most) for score in self.scores.values()])[0]

    def state(self) -> list[Any]:
        """Plain data, for `restore`."""
        return [[[arch.res, *map(list, arch[1:])], score] for arch, score in self.scores.items()]

    def restore(self, state: Sequence[Any]) -> None:
        self.scores = {Arch.of(arch): score for arch, score in state}


def choose(banks: Banks, memories: Sequence[Memory], bank: int, epoch: int, chance: random.Random) -> tuple[Arch, bool]:
    """A subnetwork of a bank to train, and whether it is freshly drawn, not remembered.

    Args:
        banks: All of them.
        memories: Of each bank.
        bank: The number of the one that is visited.
        epoch: Counted from 0; remembered ones come more often in later ones.
        chance: What the choice is drawn from.
    """
    memory = memories[bank]
    share = min(1.0, FIRST_SHARE + MORE_SHARE * (epoch // EPOCHS_TO_MORE))
    if chance.random() < share and len(memory.scores) > memory.capacity / 2:
        return memory.pick(chance), False
    if len(memory.scores) < memory.capacity / 2:
        return banks.draw(bank, chance), True
    anchor = _anchor(banks, memories[0]) if bank else banks.space.smallest
    drawn = [banks.draw(bank, chance) for _ in range(TRIES)]
    return min(drawn, key=lambda arch: banks.preference(arch, anchor)), True


def _anchor(banks: Banks, first: Memory) -> Arch:
    """The best subnetwork of the first bank."""
    best = first.best()
    if best is None:
        logging.getLogger("anyvit").warning("the first bank is empty: subnetworks are compared with the smallest one")
        return banks.space.smallest
    return best
