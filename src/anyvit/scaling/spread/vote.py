"""What an ensemble is still worth when members are missing: every set of the missing, or a sample of the sets."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from anyvit.errors import SettingError

EVERY_SET_UP_TO = 8
"""Members of which every set of the missing is tried."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The accuracy with `missing` members absent: the mean and the worst over `sets` sets of them."""

    missing: int
    mean: float
    worst: float
    sets: int


def accuracy_by_missing(
    members: int, score: Callable[[Sequence[int]], float], *, seed: int = 0, sets: int = 64
) -> tuple[Missing, ...]:
    """The accuracy with none, one, … and all but one of the members missing.

    Args:
        members: How many there are.
        score: The accuracy with the members of these positions, in ascending order, and no others.
        seed: Of the sample.
        sets: How many sets of each size are tried where there are more, and more than eight members.

    Raises:
        SettingError: No member, or no set.
    """
    if members < 1 or sets < 1:
        raise SettingError(f"members and sets must be at least 1, not {members} and {sets}.")
    return tuple(_score(members, missing, score, seed, sets) for missing in range(members))


def _score(members: int, missing: int, score: Callable[[Sequence[int]], float], seed: int, sets: int) -> Missing:
    found = [score(kept) for kept in _kept_sets(members, members - missing, seed, sets)]
    return Missing(missing, sum(found) / len(found), min(found), len(found))


def _kept_sets(members: int, size: int, seed: int, sets: int) -> Iterator[tuple[int, ...]]:
    if members <= EVERY_SET_UP_TO or math.comb(members, size) <= sets:
        yield from combinations(range(members), size)
        return
    draw = random.Random(f"{seed} {size}")
    seen: set[tuple[int, ...]] = set()
    while len(seen) < sets:
        kept = tuple(sorted(draw.sample(range(members), size)))
        if kept not in seen:
            seen.add(kept)
            yield kept
