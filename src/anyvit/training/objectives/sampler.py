"""Which subnetwork trains at a step (HydraViT, arXiv 2409.17978): a seeded draw over the list of head counts."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from anyvit.errors import SettingError


class HeadSampler:
    """One head count a step, as Python's `random.Random(seed).choices` gives them one after the other.

    The draw of a step depends on the seed and the step alone, so a resumed run continues the same series.

    Args:
        heads: Head counts to draw from, without duplicates.
        weights: How often each is drawn, in the order of `heads`; None draws all of them alike. Only their ratios
            count (the reference gives percentages).
        seed: One a process; the reference gives process r `seed + r`.

    Raises:
        SettingError: No head counts, or one twice; weights of another number, negative, or all zero.
    """

    def __init__(self, heads: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        if not heads or len(set(heads)) != len(heads):
            raise SettingError(f"heads must list every head count once, and at least one: got {list(heads)}")
        if weights is not None:
            _check(weights, heads)
        self.heads = tuple(heads)
        self.weights = None if weights is None else tuple(weights)
        self.seed = seed
        self._random = random.Random(seed)
        self._drawn: list[int] = []

    def draw(self, step: int) -> int:
        """The head count of `step`, counted from 0."""
        if step < 0:
            raise SettingError(f"step must be 0 or more: got {step}")
        missing = step + 1 - len(self._drawn)
        if missing > 0:
            self._drawn += self._random.choices(self.heads, self.weights, k=missing)
        return self._drawn[step]


def _check(weights: Sequence[float], heads: Sequence[int]) -> None:
    if len(weights) != len(heads):
        raise SettingError(f"weights must be one for each of heads {list(heads)}: got {list(weights)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise SettingError(f"weights must be finite and not negative: got {list(weights)}")
    if not sum(weights):
        raise SettingError(f"weights must not all be 0: got {list(weights)}")
