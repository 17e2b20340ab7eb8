"""What a batch takes, by candidate and number of images: measured before the first request, refreshed with each batch.

A machine gets slower and faster as a whole far more often than one candidate does alone. So what is learned from the
batches is a pace for each candidate, the measured table times a factor; one that has not run for a while takes on the
pace of those that have, and without any news the table holds again.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from anyvit.errors import SettingError

GAIN = 0.15
"""How much of a pace the newest batch makes up."""

FADE_S = 5.0
"""Seconds in which what was learned fades to a third."""

OUTLIER = 4.0
"""A batch counts as at most so many times as slow as was expected: one pause must not look like a slow machine."""

LEAST_DEVIATION = 0.05


@dataclass(slots=True)
class _Pace:
    """How many times as long as in the table batches take, and how far they are from that, on average."""

    factor: float = 1.0
    deviation: float = LEAST_DEVIATION
    at: float = -math.inf

    def note(self, ratio: float, now: float) -> None:
        ratio = min(ratio, OUTLIER * self.factor)
        self.deviation += GAIN * (abs(ratio - self.factor) - self.deviation)
        self.factor += GAIN * (ratio - self.factor)
        self.at = now

    def weight(self, now: float) -> float:
        """How much of it still holds, in 0..1."""
        return math.exp((self.at - now) / FADE_S) if now > self.at else 1.0


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
        self._paces = {id: _Pace() for id in measured}
        self._shared = _Pace()

    def sizes(self, id: str) -> tuple[int, ...]:
        """The sizes of batches of a candidate, rising."""
        return self._curves[id][0]

    def size_for(self, id: str, images: int) -> int:
        """The largest size of a batch that so many images fill, or the smallest size there is."""
        sizes = self.sizes(id)
        return sizes[max(bisect_right(sizes, images) - 1, 0)]

    def seconds(self, id: str, images: int, now: float) -> float:
        """What a batch of so many images is expected to take; above the largest size, as several of them would."""
        return self.table(id, images) * self._expected(id, now)[0]

    def safe(self, id: str, images: int, now: float) -> float:
        """What it takes at most, but for rare batches: two deviations more."""
        factor, deviation = self._expected(id, now)
        return self.table(id, images) * (factor + 2 * deviation)

    def note(self, id: str, images: int, seconds: float, now: float) -> None:
        """Learn from a batch that has just run."""
        ratio = seconds / self.table(id, images)
        self._paces[id].note(ratio, now)
        self._shared.note(ratio, now)

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

    def _expected(self, id: str, now: float) -> tuple[float, float]:
        """The factor and the deviation of a candidate now: its own, the common ones, and those of the table."""
        own, shared = self._paces[id], self._shared
        fresh, common = own.weight(now), shared.weight(now)
        factor = 1 + common * (shared.factor - 1)
        deviation = LEAST_DEVIATION + common * (shared.deviation - LEAST_DEVIATION)
        return factor + fresh * (own.factor - factor), deviation + fresh * (own.deviation - deviation)


def _curve(row: Mapping[int, float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Sizes and seconds, rising both: what noise made cheaper than a smaller batch is not."""
    sizes = tuple(sorted(row))
    seconds, most = [], 0.0
    for size in sizes:
        most = max(most, row[size])
        seconds.append(most)
    return sizes, tuple(seconds)
