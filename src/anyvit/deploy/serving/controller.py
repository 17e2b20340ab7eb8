"""Which candidate answers which images, and when: answers keep the objective and are as accurate as load allows.

A pure object: time, costs and work in, decisions out. It knows no clock, no thread and no model, so that a policy can
be played through (`simulator.py`) and tested to the microsecond.

Work waits in the order of its deadlines. Whenever the engine is free, what waits goes to a candidate, in batches up to
the size that is most efficient within half of the objective. Nothing is held back to fill a batch, for under load
batches fill by themselves. Who answers is decided by the load, and then by what waits:

* The *level*, the place of a candidate from the most accurate one on, follows the load. It is left downwards where more
  comes than the candidate can carry, or nearly what the fastest can; and upwards when for a while no more has come than
  a more accurate one carries with room to spare. Where a climb to it proves wrong, the next one waits twice as long.
  That is the hysteresis: it does not flap between two levels.
* A *relief* answers in the place of the level where a burst would be late otherwise: what waits, or the first of those
  who are expected to arrive while it is worked off (the queue model). It ends with the burst.
* A *lift*, a more accurate candidate than the level's, answers where all of these would be early. So a load between
  what two candidates carry is shared by them, and no time is left idle that could make answers better.

Work is refused when even the fastest candidate would not be done with it, or with what waits already, in time.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from anyvit.deploy.serving.service_times import ServiceTimes
from anyvit.errors import SettingError

SETTLED = 8
"""A climb proves wrong where its level is left before so many times as long as was waited for it."""

JUDGED_S = 0.1
"""For so long it holds what a candidate was found to carry: finding it out takes time that answers need."""

_ORDER = count()


@dataclass(frozen=True, slots=True)
class Policy:
    """How careful the controller is.

    Attributes:
        batch_share: The longest batch, as a share of the objective: who just misses one waits for it and for the next.
        efficiency: The smallest batch counts that carries this share of what the most efficient one carries.
        full: Above this share of what a candidate can carry, its level is left.
        room: Up to this share of what a more accurate candidate can carry, its level is climbed to. Above this share of
            what the fastest can carry, no other one answers: nobody could make up for it.
        surprise: Standard deviations above the expected arrivals that the queue model reckons with.
        memory_s: Seconds that the arrival rate is averaged over.
        hold: Objectives that a level must have had room before it is climbed to, and
        least_hold_s: the same in seconds.
        longest_hold: Objectives of calm at most: each climb to a level that proves wrong doubles what it must wait.
        lift: The share of the objective in which a more accurate candidate than the level's must be done, where the
            fastest carries twice what comes or more; where it carries less, a smaller share.
    """

    batch_share: float = 0.5
    efficiency: float = 0.97
    full: float = 0.97
    room: float = 0.85
    surprise: float = 1.0
    memory_s: float = 1.0
    hold: float = 5.0
    least_hold_s: float = 0.25
    longest_hold: float = 160.0
    lift: float = 0.7


USUAL = Policy()


@dataclass(slots=True, eq=False)
class Work:
    """An image that waits for its answer.

    Attributes:
        arrived: When the request came, in seconds of any clock.
        deadline: When its answer must be there, on the same clock.
        allowed: Candidates that may answer; None: any.
        payload: Whatever belongs to it.
    """

    arrived: float
    deadline: float
    allowed: frozenset[str] | None = None
    payload: Any = None
    order: int = field(default_factory=_ORDER.__next__)

    @property
    def key(self) -> tuple[float, int]:
        """Earlier deadlines first; of equal ones, who came first."""
        return self.deadline, self.order


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done now that the engine is free.

    Attributes:
        candidate: Who answers; None: there is nothing to answer.
        batch: The work to answer, in order.
        expired: Work that cannot be done in time any more. It is dropped, and not computed.
    """

    candidate: str | None
    batch: tuple[Work, ...] = ()
    expired: tuple[Work, ...] = ()


@dataclass(slots=True)
class _Rate:
    """Images a second, of late."""

    memory_s: float
    value: float = 0.0
    at: float = -math.inf

    def add(self, images: int, now: float) -> None:
        self.value = self.of(now) + images / self.memory_s
        self.at = max(now, self.at)

    def of(self, now: float) -> float:
        return self.value * math.exp((self.at - now) / self.memory_s) if now > self.at else self.value


class Controller:
    """Decides.

    Args:
        accuracies: The candidates that answer, by id; one that is not known has the accuracy 0.
        times: What their batches take, in seconds.
        objective: Seconds from the arrival of a request to its answer.
        policy: How careful to be.

    Raises:
        SettingError: There is no candidate.
    """

    def __init__(
        self, accuracies: Mapping[str, float], times: ServiceTimes, objective: float, policy: Policy = USUAL
    ) -> None:
        if not accuracies:
            raise SettingError("a controller needs one candidate or more.")
        self.times, self.objective, self.policy = times, objective, policy
        by_accuracy = sorted(accuracies, key=lambda id: (-accuracies[id], times.table(id, 1)))
        self.ladder: tuple[str, ...] = tuple(by_accuracy)
        self.level = 0
        self.switches = 0
        self.reliefs = 0
        self.waiting: list[Work] = []
        self.expected = 0
        self._rate = _Rate(policy.memory_s)
        self._busy_until = -math.inf
        self._hold = max(policy.hold * objective, policy.least_hold_s)
        self._holds = [self._hold] * len(self.ladder)  # how long each level must have had room, before a climb to it
        self._room_since = [-math.inf] * len(self.ladder)
        self._climbed_at = -math.inf
        self._strengths: dict[str, tuple[int, float]] = {}
        self._judged_at = -math.inf

    @property
    def candidate(self) -> str:
        """Who answers at the present level."""
        return self.ladder[self.level]

    def refuse(self, images: int, deadline: float, now: float, allowed: Collection[str] | None = None) -> float | None:
        """Whether a request must be turned away.

        Args:
            images: How many it has.
            deadline: When its answer must be there.
            now: The time.
            allowed: Candidates that may answer; None: any.

        Returns:
            None where it can be answered in time; it is then expected (`add`, or `give_up`). Otherwise the seconds
            after which it could be; infinite where its deadline is too short even for an idle server.
        """
        self._rate.add(images, now)
        fastest = self._fastest(allowed)
        ahead = self.expected + images
        start = max(now, self._busy_until)
        news = [Work(now, deadline) for _ in range(min(ahead, self.times.sizes(fastest)[-1] * 64))]
        queue = sorted([*self.waiting, *news], key=lambda work: work.key)
        if self._in_time(fastest, queue, start, now):
            self.expected += images
            return None
        alone = self.times.seconds(fastest, images, now)
        if now + alone > deadline:
            return math.inf
        return max(start - now + self.times.seconds(fastest, len(queue), now) - (deadline - now), 0.0) + alone

    def add(self, work: Work) -> None:
        """An expected image is there."""
        self.expected -= 1
        insort(self.waiting, work, key=lambda each: each.key)

    def again(self, work: Work) -> None:
        """An image waits again, because the engine failed; in the place that it had."""
        insort(self.waiting, work, key=lambda each: each.key)

    def give_up(self, images: int = 1) -> None:
        """So many expected images do not come."""
        self.expected -= images

    def cancel(self, work: Work) -> bool:
        """Nobody waits for this image any more. True: it was still waiting, and is not computed."""
        if work in self.waiting:
            self.waiting.remove(work)
            return True
        return False

    def next(self, now: float) -> Decision:
        """What a free engine does now. `done` is told when it is free again."""
        expired = self._drop_expired(now)
        self._settle(now)
        if not self.waiting:
            return Decision(None, expired=expired)
        head = self.waiting[0]
        id = self._who(head.allowed, self._place(now))
        size, _ = self._strength(id, now)
        fitting = [work for work in self.waiting if work.allowed is None or id in work.allowed]
        batch = tuple(fitting[: self.times.size_for(id, min(size, len(fitting)))])
        for work in batch:
            self.waiting.remove(work)
        self._busy_until = now + self.times.seconds(id, len(batch), now)
        return Decision(id, batch, expired)

    def done(self, decision: Decision, seconds: float, now: float) -> None:
        """A batch is answered, `seconds` after it was decided."""
        assert decision.candidate is not None
        self._busy_until = now
        self.times.note(decision.candidate, len(decision.batch), seconds, now)

    def failed(self, now: float) -> None:
        """A batch was not answered, and the engine is free again."""
        self._busy_until = now

    def carries(self, id: str, now: float) -> float:
        """Images a second that a candidate answers at most within the objective; 0 where one takes too long."""
        return self._strength(id, now)[1]

    def rate(self, now: float) -> float:
        """Images a second that have come of late."""
        return self._rate.of(now)

    def _drop_expired(self, now: float) -> tuple[Work, ...]:
        """Work that not even the fastest candidate would be done with in time."""
        late = tuple(
            work
            for work in self.waiting
            if now + self.times.seconds(self._fastest(work.allowed), 1, now) > work.deadline
        )
        if late:
            self.waiting = [work for work in self.waiting if work not in late]
        return late

    def _settle(self, now: float) -> None:
        """Leave the level where the load demands or allows it."""
        rate, last = self.rate(now), len(self.ladder) - 1
        for level in range(self.level):
            if not self._carries(level, self.policy.room, rate, now):
                self._room_since[level] = now
        able = (k for k in range(self.level, last) if self._carries(k, self.policy.full, rate, now))
        lowest = next(able, last) if self._carries(last, self.policy.room, rate, now) else last
        if lowest > self.level:
            self._descend(lowest, now)
            return
        calm = (level for level in range(self.level) if now - self._room_since[level] >= self._holds[level])
        highest = next(calm, self.level)
        if highest < self.level:
            self.level, self._climbed_at = highest, now
            self.switches += 1

    def _descend(self, level: int, now: float) -> None:
        longest = max(self.policy.longest_hold * self.objective, self._hold)
        wrong = now - self._climbed_at < SETTLED * self._holds[self.level]
        self._holds[self.level] = min(max(self._holds[self.level] * (2 if wrong else 0.5), self._hold), longest)
        for left in range(self.level, level):
            self._room_since[left] = now
        self.level = level
        self.switches += 1

    def _carries(self, level: int, share: float, rate: float, now: float) -> bool:
        """Can this level carry what comes, with a share of its strength?"""
        return rate <= share * self.carries(self.ladder[level], now)

    def _place(self, now: float) -> int:
        """Of who answers what waits: a lift, the level, or the nearest faster one that works it off in time."""
        rate, last = self.rate(now), len(self.ladder) - 1
        spare = self._spare(rate, now)
        for place in range(last):
            start = now + spare if place < self.level else now
            if self._in_time(self.ladder[place], self.waiting, start, now, rate):
                break
        else:
            place = last
        self.reliefs += place > self.level
        return place

    def _spare(self, rate: float, now: float) -> float:
        """Seconds that a lift must leave: the more, the longer the fastest needs to work off what gathers in it."""
        slack = self.carries(self.ladder[-1], now) / rate - 1 if rate else 1.0
        return (1 - self.policy.lift * min(max(slack, 0.0), 1.0)) * self.objective

    def _in_time(self, id: str, queue: Sequence[Work], start: float, now: float, rate: float = 0.0) -> bool:
        """The queue model: is all of `queue` done by its deadlines, when `id` begins with it at `start`?

        And, where a rate is given, is the first of those who arrive meanwhile?
        """
        (size, _), at = self._strength(id, now), start
        for place in range(0, len(queue), size):
            at += self.times.safe(id, min(size, len(queue) - place), now)
            if at > queue[place].deadline:
                return False
        if not rate or at == start:
            return True
        coming = rate * (at - start)
        coming += self.policy.surprise * math.sqrt(coming)
        return at + self.times.safe(id, min(math.ceil(coming), size), now) <= now + self.objective

    def _strength(self, id: str, now: float) -> tuple[int, float]:
        """The images of its usual batch, and those that it carries a second in such; 0 where a batch takes too long."""
        if not 0 <= now - self._judged_at < JUDGED_S:
            self._strengths.clear()
            self._judged_at = now
        if id not in self._strengths:
            size = self._batch_size(id, now)
            seconds = self.times.seconds(id, size, now)
            self._strengths[id] = size, size / seconds if seconds <= self.objective else 0.0
        return self._strengths[id]

    def _batch_size(self, id: str, now: float) -> int:
        """The smallest batch that is nearly as efficient as any within its share of the objective."""
        longest = self.policy.batch_share * self.objective
        sizes = self.times.sizes(id)
        able = [size for size in sizes if self.times.safe(id, size, now) <= longest] or sizes[:1]
        gains = {size: size / self.times.seconds(id, size, now) for size in able}
        enough = self.policy.efficiency * max(gains.values())
        return next(size for size in able if gains[size] >= enough)

    def _who(self, allowed: frozenset[str] | None, level: int) -> str:
        """The candidate of a level, or the nearest one that may answer: the next faster, else the next slower."""
        if allowed is None or self.ladder[level] in allowed:
            return self.ladder[level]
        faster = [id for id in self.ladder[level:] if id in allowed]
        return faster[0] if faster else next(id for id in reversed(self.ladder[:level]) if id in allowed)

    def _fastest(self, allowed: Collection[str] | None) -> str:
        return next(id for id in reversed(self.ladder) if allowed is None or id in allowed)
