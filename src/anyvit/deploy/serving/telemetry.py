"""What a server tells of itself: Prometheus metrics, and two minutes of history for the page."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from anyvit import __version__
from anyvit.deploy.serving.controller import Controller

HISTORY_S = 120
BATCHES = (1, 2, 4, 8, 16, 32)
SHARES_OF_OBJECTIVE = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 5.0)


@dataclass(slots=True)
class _Second:
    """What happened to the images of one second."""

    at: int
    requests: int = 0
    late: int = 0
    shed: int = 0
    failed: int = 0
    latencies: list[float] = field(default_factory=list)
    candidates: dict[str, int] = field(default_factory=dict)

    def to_json(self, accuracies: Mapping[str, float]) -> dict[str, Any]:
        answered = len(self.latencies)
        known = {id: count for id, count in self.candidates.items() if id in accuracies}
        right = sum(accuracies[id] * count for id, count in known.items())
        return {
            "at": self.at,
            "requests": self.requests,
            "answered": answered,
            "late": self.late,
            "shed": self.shed,
            "failed": self.failed,
            "p99_ms": 1e3 * float(np.quantile(self.latencies, 0.99)) if answered else None,
            "accuracy": right / sum(known.values()) if known else None,
            "candidates": dict(self.candidates),
        }


class Telemetry:
    """Counts what becomes of images.

    Args:
        objective: Seconds that an answer may take.
        accuracies: Of each candidate, where it is known.
    """

    def __init__(self, objective: float, accuracies: Mapping[str, float]) -> None:
        self.objective, self.accuracies = objective, dict(accuracies)
        self._seconds: deque[_Second] = deque(maxlen=HISTORY_S + 1)
        self._level, self._queue = "", 0
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        who = {"version": __version__, "pid": str(os.getpid())}
        Info("anyvit_server", "Who tells this: replicas may share an address", registry=registry).info(who)
        buckets = [share * objective for share in SHARES_OF_OBJECTIVE]
        self._responses = Counter("anyvit_requests", "Requests, by status", ["status"], registry=registry)
        self._images = Counter("anyvit_images", "Images, by what became of them", ["outcome"], registry=registry)
        self._answers = Counter("anyvit_answers", "Images answered, by candidate", ["candidate"], registry=registry)
        self._latency = Histogram(
            "anyvit_latency_seconds", "From the arrival of an image to its answer", buckets=buckets, registry=registry
        )
        self._batch = Histogram("anyvit_batch_images", "Images a batch", buckets=BATCHES, registry=registry)
        self._batch_seconds = Counter(
            "anyvit_batch_seconds", "Seconds that the engine was busy, by candidate", ["candidate"], registry=registry
        )
        self._unread = Counter("anyvit_unread_batches", "Batches that nobody waited for any more", registry=registry)
        self._shed = Counter("anyvit_shed_images", "Images turned away because of the load", registry=registry)
        self._deaths = Counter("anyvit_engine_deaths", "Engines that died", registry=registry)
        self._waiting = Gauge("anyvit_queue_images", "Images that wait", registry=registry)
        self._serving = Gauge("anyvit_level", "1 for the candidate of the level", ["candidate"], registry=registry)
        self._switches = Counter("anyvit_level_switches", "Changes of the level", registry=registry)
        self._reliefs = Counter("anyvit_reliefs", "Batches that a faster candidate took in a burst", registry=registry)
        self._counted = (0, 0)

    def serves(self, ids: Sequence[str]) -> None:
        """These candidates are there, even before any has answered."""
        for id in ids:
            self._answers.labels(id)
            self._serving.labels(id).set(0)

    def request(self, status: int) -> None:
        """A request has ended."""
        self._responses.labels(str(status)).inc()

    def answered(self, id: str, seconds: float) -> None:
        """An image was answered by a candidate, so long after it came."""
        self._images.labels("answered").inc()
        self._answers.labels(id).inc()
        self._latency.observe(seconds)
        second = self._now()
        second.requests += 1
        second.late += seconds > self.objective
        second.latencies.append(seconds)
        second.candidates[id] = second.candidates.get(id, 0) + 1

    def shed(self, images: int) -> None:
        """Images were turned away."""
        self._images.labels("shed").inc(images)
        self._shed.inc(images)
        second = self._now()
        second.requests += images
        second.shed += images

    def expired(self, images: int) -> None:
        """Images could not be answered in time any more."""
        self._images.labels("expired").inc(images)
        self._count_failed(images)

    def failed(self) -> None:
        """An image was not answered because of the engine."""
        self._images.labels("failed").inc()
        self._count_failed(1)

    def left(self, images: int) -> None:
        """A client left before the answer to its images."""
        self._images.labels("left").inc(images)

    def unreadable(self) -> None:
        """An image cannot be read."""
        self._images.labels("unreadable").inc()

    def batch(self, id: str, images: int, seconds: float, readers: int) -> None:
        """A batch was computed, for so many who still wait."""
        self._batch.observe(images)
        self._batch_seconds.labels(id).inc(seconds)
        if not readers:
            self._unread.inc()

    def engine_died(self) -> None:
        """The engine has died."""
        self._deaths.inc()

    def state(self, controller: Controller) -> None:
        """The level and the queue now."""
        if controller.candidate != self._level:
            if self._level:
                self._serving.labels(self._level).set(0)
            self._level = controller.candidate
            self._serving.labels(self._level).set(1)
        self._queue = len(controller.waiting)
        self._waiting.set(self._queue)
        switches, reliefs = self._counted
        self._switches.inc(controller.switches - switches)
        self._reliefs.inc(controller.reliefs - reliefs)
        self._counted = controller.switches, controller.reliefs

    def metrics(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)

    def load(self, *, ready: bool) -> dict[str, Any]:
        """The last two minutes, of which the present second is left out."""
        now = int(time.time())
        by_second = {second.at: second for second in self._seconds}
        first = max(min(by_second, default=now), now - HISTORY_S)
        history = [by_second.get(at, _Second(at)).to_json(self.accuracies) for at in range(first, now)]
        shown = {"level": self._level or None, "queue": self._queue, "ready": ready}
        return {"slo_ms": 1e3 * self.objective, **shown, "history": history}

    def _count_failed(self, images: int) -> None:
        second = self._now()
        second.requests += images
        second.failed += images

    def _now(self) -> _Second:
        at = int(time.time())
        if not self._seconds or self._seconds[-1].at != at:
            self._seconds.append(_Second(at))
        return self._seconds[-1]
