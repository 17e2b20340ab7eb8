"""The six numbers that a plain ViT is scaled by: their limits, the steps between them, and how they are rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from anyvit.costs.counts import Specification
from anyvit.errors import SettingError

FACTORS = ("depth", "heads", "head_dim", "mlp_ratio", "image_size", "patch_size")
"""In the order in which ties are settled."""

CHANNELS = 8
"""Heads are as wide as a multiple of it: other widths are slow on most devices."""


Range = tuple[float, float, float]
"""From, to, and in steps of."""


@dataclass(frozen=True)
class Limits:
    """What each factor may be. Image sizes go in steps of the patch size, patch sizes through their list.

    Raises:
        SettingError: A range or the list is empty, or heads would be as wide as no multiple of 8.
    """

    depth: Range = (1, 48, 1)
    heads: Range = (1, 32, 1)
    head_dim: Range = (8, 128, 8)
    mlp_ratio: Range = (1.0, 8.0, 0.5)
    image_size: tuple[int, int] = (64, 512)
    patch_sizes: tuple[int, ...] = (32, 28, 16, 14, 8, 7, 4)

    def __post_init__(self) -> None:
        for name in ("depth", "heads", "head_dim", "mlp_ratio"):
            low, high, step = getattr(self, name)
            if not (0 < low <= high and step > 0):
                raise SettingError(f"{name} from {low:g} to {high:g} in steps of {step:g} holds nothing")
        low, high = self.image_size
        if not (low > 0 and any(self.image_sizes(patch) for patch in self.patch_sizes)):
            raise SettingError(
                f"no image size from {low} to {high} is a multiple of a patch size of {self.patch_sizes}"
            )
        low, _, step = self.head_dim
        if low % CHANNELS or step % CHANNELS:
            raise SettingError(f"head_dim from {low:g} in steps of {step:g} is not always a multiple of {CHANNELS}")

    def grown(self, spec: Specification, factor: str) -> list[Specification]:
        """`spec` with larger values of one factor, from the next one on: smaller ones where it is the patch size."""
        now = getattr(spec, factor)
        if factor == "patch_size":
            values = [value for value in self._values(spec, factor)[::-1] if value < now]
        else:
            values = [value for value in self._values(spec, factor) if value > now]
        return [changed(spec, factor, value) for value in values]

    def shrunk(self, spec: Specification, factor: str) -> Specification | None:
        """`spec` with one factor a step back, or None where there is no such step."""
        now = getattr(spec, factor)
        if factor == "patch_size":
            value = min((value for value in self._values(spec, factor) if value > now), default=None)
        else:
            value = max((value for value in self._values(spec, factor) if value < now), default=None)
        return None if value is None else changed(spec, factor, value)

    def _values(self, spec: Specification, factor: str) -> list[float]:
        """Ascending."""
        if factor == "patch_size":
            return sorted(patch for patch in self.patch_sizes if spec.image_size % patch == 0)
        if factor == "image_size":
            return self.image_sizes(spec.patch_size)
        return values_of(getattr(self, factor))

    def image_sizes(self, patch_size: int) -> list[float]:
        """The multiples of a patch size, ascending."""
        low, high = self.image_size
        return [patch_size * count for count in range(math.ceil(low / patch_size), high // patch_size + 1)]

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Limits:
        return cls(**{name: tuple(value) for name, value in data.items()})


def values_of(allowed: Range) -> list[float]:
    """The values of a range, both ends among them where the steps meet the end."""
    low, high, step = allowed
    return [low + place * step for place in range(math.floor((high - low) / step + 1e-9) + 1)]


def changed(spec: Specification, factor: str, value: float) -> Specification:
    """`spec` with another value of one factor."""
    changes: dict[str, Any] = {factor: value if factor == "mlp_ratio" else int(value)}
    return replace(spec, **changes)


def scaled(base: Specification, by: Mapping[str, float], patch_sizes: Sequence[int]) -> Specification:
    """`base` with its factors multiplied, and rounded to what a ViT can be.

    Heads and depth to the nearest whole number, half up; the width of a head to a multiple of 8, the MLP ratio to one
    of 0.5; the patch to the size listed that is nearest in proportion, the larger of two; the image to a multiple of
    that patch.

    Args:
        base: What is scaled.
        by: What each factor is multiplied by; those that are left out stay.
        patch_sizes: Those that may be, beside that of the base.
    """
    wanted = {factor: getattr(base, factor) * by.get(factor, 1.0) for factor in FACTORS}
    patches = sorted({*patch_sizes, base.patch_size}, reverse=True)
    patch = min(patches, key=lambda patch: abs(math.log(patch / wanted["patch_size"])))
    return replace(
        base,
        depth=rounded(wanted["depth"]),
        heads=rounded(wanted["heads"]),
        head_dim=rounded(wanted["head_dim"], CHANNELS),
        mlp_ratio=0.5 * rounded(wanted["mlp_ratio"] / 0.5),
        image_size=rounded(wanted["image_size"], patch),
        patch_size=patch,
    )


def rounded(value: float, multiple: int = 1) -> int:
    """The nearest multiple, half up, and at least one of it."""
    return multiple * max(math.floor(value / multiple + 0.5), 1)


def latin_hypercube(
    limits: Limits,
    count: int,
    seed: int = 0,
    accept: Callable[[Specification], bool] = lambda spec: True,
    *,
    num_classes: int = 1000,
    attempts: int = 200,
) -> list[Specification]:
    """Different shapes that are spread over all factors alike, in proportion: for a predictor to learn from.

    Args:
        limits: Of the factors.
        count: How many.
        seed: Draws them.
        accept: Which of them will do, as those inside a range of cost.
        num_classes: Of every shape.
        attempts: Hypercubes of `count` shapes that are drawn, at most.

    Raises:
        SettingError: Too few were accepted.
    """
    chance = np.random.default_rng(seed)
    found: dict[Specification, None] = {}
    for _ in range(attempts):
        places = (chance.permuted(np.tile(np.arange(count), (len(FACTORS), 1)), axis=1) + 0.5) / count
        for column in places.T.tolist():
            spec = _placed(limits, dict(zip(FACTORS, column, strict=True)), num_classes)
            if accept(spec):
                found[spec] = None
            if len(found) == count:
                return [*found]
    raise SettingError(
        f"{len(found)} of {attempts * count} shapes drawn were accepted and different, not {count}: "
        f"widen the limits, or accept more."
    )


def _placed(limits: Limits, places: Mapping[str, float], num_classes: int) -> Specification:
    """The shape at these places from 0 to 1 within the limits."""
    patch = int(_at(sorted(patch for patch in limits.patch_sizes if limits.image_sizes(patch)), places["patch_size"]))
    size = int(_at(limits.image_sizes(patch), places["image_size"]))
    depth, heads, head_dim = (
        int(_at(values_of(getattr(limits, name)), places[name])) for name in ("depth", "heads", "head_dim")
    )
    ratio = _at(values_of(limits.mlp_ratio), places["mlp_ratio"])
    return Specification(size, patch, depth, heads, head_dim, ratio, num_classes)


def _at(values: Sequence[float], place: float) -> float:
    """The value at a place from 0 to 1, where equal proportions are equal distances."""
    edges = [math.sqrt(low * high) for low, high in pairwise(values)]  # between neighbours, in proportion
    spot = values[0] * (values[-1] / values[0]) ** place
    return values[sum(edge < spot for edge in edges)]
