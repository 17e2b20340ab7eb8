"""How fast a training goes and how well, since the last validation and right now."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any


class Meter:
    """Adds up what steps report. What happens between `add` and `go_on` is not counted as time of a step."""

    def __init__(self) -> None:
        self.recent: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._images = 0
        self._seconds = 0.0
        self._last_seconds: deque[float] = deque(maxlen=16)
        self._begun = time.monotonic()

    def go_on(self) -> None:
        """The next step begins."""
        self._begun = time.monotonic()

    def add(self, figures: Mapping[str, float], *, images: int) -> None:
        """A step ends that learned from so many images."""
        seconds = time.monotonic() - self._begun
        self._last_seconds.append(seconds)
        self._steps += 1
        self._images += images
        self._seconds += seconds
        pace = images * len(self._last_seconds) / max(sum(self._last_seconds), 1e-9)
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self.recent[name] = 0.95 * self.recent.get(name, value) + 0.05 * value
        self.recent["images_per_second"] = pace

    @property
    def slowest(self) -> float:
        """The seconds of the slowest of the last steps."""
        return max(self._last_seconds, default=0.0)

    def take(self) -> dict[str, float]:
        """The means since the last call, and `images_per_second`."""
        means = {name: total / max(1, self._steps) for name, total in self._sums.items()}
        means["images_per_second"] = self._images / max(self._seconds, 1e-9)
        self._sums, self._steps, self._images, self._seconds = {}, 0, 0, 0.0
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums, "steps": self._steps, "images": self._images, "seconds": self._seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums, self._steps = dict(state["sums"]), state["steps"]
        self._images, self._seconds = state["images"], state["seconds"]
