"""A policy played through without a clock or a model: arrivals and true costs in, what became of each image out.

The same controller decides as in the server. Everything follows from the arguments, so two plays are equal.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from anyvit.deploy.serving.controller import Controller, Decision, Work

Truth = Callable[[str, int, float], float]
"""The seconds that a batch really takes: candidate, images, time of its begin."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of one image.

    Attributes:
        at: When it comes, in seconds.
        deadline: Seconds that its answer may take; None: the objective.
        allowed: Candidates that may answer.
        leaves: Seconds after which its client hangs up; None: it waits.
    """

    at: float
    deadline: float | None = None
    allowed: frozenset[str] | None = None
    leaves: float | None = None


@dataclass(slots=True)
class Fate:
    """What became of an arrival: `done` and `candidate` where it was answered, else `why` not."""

    arrival: Arrival
    done: float | None = None
    candidate: str | None = None
    why: str | None = None

    @property
    def latency(self) -> float | None:
        """Seconds from its arrival to its answer."""
        return None if self.done is None else self.done - self.arrival.at


@dataclass(slots=True)
class Play:
    """What happened.

    Attributes:
        fates: Of each arrival, in order.
        levels: Time and candidate of each change of level.
        batches: Begin, candidate, images, and how many of them somebody still waited for at the end.
    """

    fates: list[Fate]
    levels: list[tuple[float, str]] = field(default_factory=list)
    batches: list[tuple[float, str, int, int]] = field(default_factory=list)

    def shares(self, begin: float = 0.0, end: float = float("inf")) -> dict[str, float]:
        """The share of each candidate of what arrived in that time and was answered."""
        counts = Counter(fate.candidate for fate in self.fates if fate.candidate and begin <= fate.arrival.at < end)
        return {id: number / counts.total() for id, number in counts.items()}

    def in_time(self, objective: float, begin: float = 0.0, end: float = float("inf")) -> float:
        """The share of what arrived in that time, and did not leave, that was answered within the objective."""
        asked = [fate for fate in self.fates if begin <= fate.arrival.at < end and fate.why != "left"]
        kept = sum(fate.latency is not None and fate.latency <= objective for fate in asked)
        return kept / len(asked) if asked else 1.0


def simulate(controller: Controller, arrivals: Sequence[Arrival], truth: Truth) -> Play:
    """Play `arrivals`, by rising time, through a controller whose batches take what `truth` says."""
    play = Play([Fate(arrival) for arrival in arrivals])
    events: list[tuple[float, int, str, int]] = [(a.at, n, "comes", n) for n, a in enumerate(arrivals)]
    events += [(a.at + a.leaves, n, "leaves", n) for n, a in enumerate(arrivals) if a.leaves is not None]
    heapq.heapify(events)
    works: dict[int, Work] = {}
    running: tuple[Decision, float] | None = None
    while events:
        now, _, what, number = heapq.heappop(events)
        if what == "comes":
            _arrive(controller, play.fates[number], number, works, now)
        elif what == "leaves":
            _leave(controller, play.fates[number], works.get(number))
        elif running:
            _finish(controller, play, *running, now)
            running = None
        if running is None:
            decision = controller.next(now)
            for work in decision.expired:
                work.payload.why = "expired"
            if not play.levels or play.levels[-1][1] != controller.candidate:
                play.levels.append((now, controller.candidate))
            if decision.candidate is not None:
                running = decision, now
                ends = now + truth(decision.candidate, len(decision.batch), now)
                heapq.heappush(events, (ends, -1, "done", -1))
    return play


def _arrive(controller: Controller, fate: Fate, number: int, works: dict[int, Work], now: float) -> None:
    arrival = fate.arrival
    deadline = now + (controller.objective if arrival.deadline is None else arrival.deadline)
    if controller.refuse(1, deadline, now, arrival.allowed) is not None:
        fate.why = "shed"
        return
    works[number] = Work(now, deadline, arrival.allowed, fate)
    controller.add(works[number])


def _leave(controller: Controller, fate: Fate, work: Work | None) -> None:
    if fate.done is None and fate.why is None:
        fate.why = "left"
        if work is not None:
            controller.cancel(work)


def _finish(controller: Controller, play: Play, decision: Decision, begun: float, now: float) -> None:
    controller.done(decision, now - begun, now)
    assert decision.candidate is not None
    readers = [work.payload for work in decision.batch if work.payload.why is None]
    for fate in readers:
        fate.done, fate.candidate = now, decision.candidate
    play.batches.append((begun, decision.candidate, len(decision.batch), len(readers)))
