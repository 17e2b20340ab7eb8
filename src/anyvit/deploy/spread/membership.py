"""Which boards take part: who answers, who is left out and why, and how one comes back under its name.

A board is present from the moment it says, in its card, that it holds the part it should. It is left out as soon as it
misses a deadline, answers wrongly or breaks its connection. From then on it is only asked for its card: at once, then
ever less often. Each return is a new admission; what was asked under an earlier one neither counts nor harms.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from time import monotonic

from anyvit.deploy.spread.placed import PlacedPart
from anyvit.deploy.spread.refusal import Refusal, words
from anyvit.deploy.spread.transports import Link
from anyvit.deploy.spread.wire import VERSION
from anyvit.deploy.spread.worker import Card


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often boards are asked for their cards, in seconds.

    Attributes:
        heartbeat: From one card of a present board to the next; the first pause for one that is left out.
        patience: How long a card may take.
        longest: The longest pause for a board that is left out; pauses double up to it.
    """

    heartbeat: float = 1.0
    patience: float = 2.0
    longest: float = 8.0


USUAL = Rhythm()


@dataclass(eq=False)
class Member:
    """A board, as the hub knows it. Only `Membership` changes it."""

    part: PlacedPart
    link: Link
    present: bool = False
    reason: str = "not reached yet"
    admission: int = 0
    failures: int = 0  # in a row, the answers to questions as well as the cards
    probe: int = 0  # counts the cards asked for; one of an earlier number comes too late
    probing: bool = False
    due: float = 0.0  # when the next card is to be asked for, or while probing, when it is overdue


Admitted = tuple[Member, int]
"""A present member, and under which admission."""


class Membership:
    """Watches over boards in a thread of its own.

    Args:
        links: A link to each board, by what it holds.
        rhythm: How often they are asked for their cards.
    """

    def __init__(self, links: Mapping[PlacedPart, Link], rhythm: Rhythm) -> None:
        self._members = [Member(part, link) for part, link in links.items()]
        self._rhythm = rhythm
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="membership", daemon=True)
        self._thread.start()

    def present(self) -> list[Admitted]:
        """Who can be asked."""
        with self._changed:
            return [(member, member.admission) for member in self._members if member.present]

    def absent(self) -> dict[str, str]:
        """Who is left out, and why."""
        with self._changed:
            return {member.part.board: member.reason for member in self._members if not member.present}

    def wait(self, enough: Callable[[Sequence[Member]], bool], until: float) -> bool:
        """Wait until `enough` holds of all members, or the clock shows `until`. Returns whether it holds."""
        with self._changed:
            return self._changed.wait_for(lambda: enough(self._members), max(0.0, until - monotonic()))

    def answered(self, member: Member, admission: int) -> None:
        """A question was answered well."""
        with self._changed:
            if member.admission == admission:
                member.failures = 0

    def failed(self, member: Member, admission: int, reason: str) -> None:
        """A question was not: the board is left out, unless it has come back since it was asked."""
        with self._changed:
            if member.present and member.admission == admission:
                self._leave_out(member, reason)
                self._changed.notify_all()

    def close(self) -> None:
        """End the watch and hang up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        for member in self._members:
            member.link.close()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = monotonic()
                for member in self._members:
                    if member.probing and member.due <= now:
                        self._leave_out(member, f"no sign of life within {self._rhythm.patience:g} s")
                due = [member for member in self._members if not member.probing and member.due <= now]
                probes = [(member, self._begin_probe(member, now)) for member in due]
            for member, probe in probes:
                member.link.hello(self._rhythm.patience).add_done_callback(partial(self._heard, member, probe))
            with self._changed:
                next_due = min((member.due for member in self._members), default=math.inf)
                if not self._closed and next_due > monotonic():
                    self._changed.wait(next_due - monotonic())

    def _begin_probe(self, member: Member, now: float) -> int:
        member.probing, member.due = True, now + self._rhythm.patience
        member.probe += 1
        return member.probe

    def _heard(self, member: Member, probe: int, card: Future[bytes]) -> None:
        problem = _problem(member.part, card)
        with self._changed:
            if member.probe != probe or not member.probing:
                return  # it was given up already
            if problem is None:
                self._admit(member)
            else:
                self._leave_out(member, problem)
            self._changed.notify_all()

    def _admit(self, member: Member) -> None:
        member.probing, member.due = False, monotonic() + self._rhythm.heartbeat
        if not member.present:
            member.present, member.reason = True, ""
            member.admission += 1

    def _leave_out(self, member: Member, reason: str) -> None:
        member.present, member.reason, member.probing = False, reason, False
        member.failures += 1
        pause = self._rhythm.heartbeat * 2 ** min(member.failures - 2, 30) if member.failures > 1 else 0.0
        member.due = monotonic() + min(pause, self._rhythm.longest)


def _problem(part: PlacedPart, heard: Future[bytes]) -> str | None:
    """Why a board cannot be asked, after its card has come or failed to; None: it can."""
    error = heard.exception()
    if error is not None:
        return words(error)
    try:
        card = Card.from_bytes(heard.result())
    except Refusal as refusal:
        return words(refusal)
    if card.wire != VERSION:
        return (
            f"speaks version {card.wire} of the messages (AnyViT {card.anyvit}), not {VERSION}: update the older side"
        )
    if card.weights != part.hash:
        return (
            f"holds weights {card.weights[:12]} (made for {card.board}), not {part.hash[:12]}: "
            f"start its worker with {part.file}"
        )
    return None
