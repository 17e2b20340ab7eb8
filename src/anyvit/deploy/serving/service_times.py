"""What a batch takes, by candidate and number of images: measured before the first request, refreshed with each batch.

Two things happen to the times of the table while requests come. The machine gets slower or faster as a whole; and the
front, which reads and answers, delays the engine where they share a core, by so much an image and so much a batch. The
first is a factor; the second is added, as much for a small candidate as for a large one. So they are learned together,
from the batches of all candidates, by regression. One candidate alone may then be slower or faster than that by a
factor of its own. Without any news, the table holds again.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anyvit.errors import SettingError

GAIN = 0.15
"""How much of a candidate's own pace the newest batch makes up."""

KEPT = 0.97
"""How much the batches before it count in what is common, with each batch."""

FADE_S = 5.0
"""Seconds in which what was learned fades to a third."""

OUTLIER = 3.0
"""A batch counts as at most so many times as slow as was expected: one pause must not look like a slow machine."""

LEAST_DEVIATION = 0.05

CAUTION, IMAGE_S, BATCH_S = 6.0, 2e-3, 1e-2
"""It takes so many batches to believe half of a factor; and of the front's seconds an image or a batch, where the table
has so many seconds. In small models, then, delays count as the front's rather than as the machine's, until batches of
several sizes and candidates tell them apart."""


class _Common:
    """What is common to all candidates: a linear regression towards the table.

    A batch takes `table * factor + images * front + batch` seconds. Squares of relative errors are least.
    """

    def __init__(self) -> None:
        self._squares, self._products = np.zeros((3, 3)), np.zeros(3)
        self._caution = CAUTION * np.diag([1.0, IMAGE_S**-2, BATCH_S**-2])
        self._learned = (0.0, 0.0, 0.0)
        self._at = -math.inf

    def note(self, table: float, images: int, seconds: float, now: float) -> None:
        """Learn from a batch."""
        causes = np.array([1.0, images / table, 1 / table])
        kept = KEPT * _weight(self._at, now)
        self._squares = kept * self._squares + np.outer(causes, causes)
        self._products = kept * self._products + causes * (seconds / table - 1)
        self._learned, self._at = self._solved(), now

    def seconds(self, table: float, images: int, now: float) -> float:
        """What a batch takes of any candidate."""
        slower, front, batch = self._learned
        return table + _weight(self._at, now) * (slower * table + images * front + batch)

    def _solved(self) -> tuple[float, float, float]:
        """The weights of the regression; the front does not save time, so what would be below 0 is left out."""
        squares, used = self._squares + self._caution, [0, 1, 2]
        while True:
            solution = np.linalg.solve(squares[np.ix_(used, used)], self._products[used])
            weights = dict(zip(used, solution.tolist(), strict=True))
            negative = {cause for cause in (1, 2) if weights.get(cause, 0.0) < 0}
            if not negative:
                return weights[0], weights.get(1, 0.0), weights.get(2, 0.0)
            used = [cause for cause in used if cause not in negative]


@dataclass(slots=True)
class _Average:
    """Of the newest batches; what it was before there were any, it becomes again without news."""

    value: float
    at: float = -math.inf

    def note(self, value: float, now: float, usual: float) -> None:
        before = self.of(now, usual)
        self.value, self.at = before + GAIN * (value - before), now

    def of(self, now: float, usual: float) -> float:
        return usual + _weight(self.at, now) * (self.value - usual)


class ServiceTimes:
    """The seconds that batches take.

    Args:
        measured: By candidate and number of images, the seconds of a batch. Batches have one of these sizes.

    Raises:
        SettingError: A candidate without a measured size, or a time that is not finite and above 0.
    """

    def __init__(self, measured: Mapping[str, Mapping[int, float]]) -> None:
        for id, row in measured.items():
            if not row or not all(math.isfinite(seconds) and seconds > 0 for seconds in row.values()):
                raise SettingError(f"{id} needs the seconds of a batch for one size or more, not {dict(row)}.")
        self._curves = {id: _curve(row) for id, row in measured.items()}
        self._common = _Common()
        self._paces = {id: _Average(1.0) for id in measured}  # seconds over those that are common
        self._deviation = _Average(LEAST_DEVIATION)  # of seconds from those expected, as a share of these
        self._deviations = {id: _Average(LEAST_DEVIATION) for id in measured}

    def sizes(self, id: str) -> tuple[int, ...]:
        """The sizes of batches of a candidate, rising."""
        return self._curves[id][0]

    def size_for(self, id: str, images: int) -> int:
        """The largest size of a batch that so many images fill, or the smallest size there is."""
        sizes = self.sizes(id)
        return sizes[max(bisect_right(sizes, images) - 1, 0)]

    def seconds(self, id: str, images: int, now: float) -> float:
        """What a batch of so many images is expected to take; above the largest size, as several of them would."""
        return self._common.seconds(self.table(id, images), images, now) * self._paces[id].of(now, 1.0)

    def safe(self, id: str, images: int, now: float) -> float:
        """What it takes at most, but for rare batches: two deviations more."""
        common = self._deviation.of(now, LEAST_DEVIATION)
        return self.seconds(id, images, now) * (1 + 2 * self._deviations[id].of(now, common))

    def note(self, id: str, images: int, seconds: float, now: float) -> None:
        """Learn from a batch that has just run."""
        table, expected = self.table(id, images), self.seconds(id, images, now)
        seconds = min(seconds, OUTLIER * expected)
        common, surprise = self._deviation.of(now, LEAST_DEVIATION), abs(seconds / expected - 1)
        self._deviations[id].note(surprise, now, common)
        self._deviation.note(surprise, now, LEAST_DEVIATION)
        self._common.note(table, images, seconds, now)
        self._paces[id].note(seconds / self._common.seconds(table, images, now), now, 1.0)

    def table(self, id: str, images: int) -> float:
        """As measured before the first request, linear between the sizes."""
        sizes, seconds = self._curves[id]
        whole, rest = divmod(images, sizes[-1])
        if not rest:
            return whole * seconds[-1]
        place = bisect_left(sizes, rest)
        if sizes[place] == rest or place == 0:
            part = seconds[place]
        else:
            share = (rest - sizes[place - 1]) / (sizes[place] - sizes[place - 1])
            part = seconds[place - 1] + share * (seconds[place] - seconds[place - 1])
        return whole * seconds[-1] + part


def _weight(at: float, now: float) -> float:
    """How much still holds of what was learned then, in 0..1."""
    return math.exp((at - now) / FADE_S) if now > at else 1.0


def _curve(row: Mapping[int, float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Sizes and seconds, rising both: what noise made cheaper than a smaller batch is not."""
    sizes = tuple(sorted(row))
    seconds, most = [], 0.0
    for size in sizes:
        most = max(most, row[size])
        seconds.append(most)
    return sizes, tuple(seconds)
