"""The hub at work: asks the boards that are there, waits until a deadline, and answers with those that did.

with Coordinator.open("placed/") as coordinator:
    answer = coordinator.ask(pixels).answer()
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Self

from torch import Tensor

from anyvit.deploy.spread.hub import open_hub
from anyvit.deploy.spread.membership import USUAL, Member, Membership, Rhythm
from anyvit.deploy.spread.placed import Placed
from anyvit.deploy.spread.request import Request
from anyvit.deploy.spread.security import PLAIN, Security
from anyvit.deploy.spread.transports import Place, Transport, open_transport
from anyvit.errors import SettingError, SpreadError
from anyvit.scaling.spread.vote import Missing

LEAST_DEADLINE = 1.0
DEADLINE_PER_LATENCY = 10
"""Unless told otherwise, a request may take ten times as long as was planned, but at least a second."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What the boards that answered in time say together.

    Attributes:
        logits: (B, classes).
        voted: Groups, or sub-models, that are in it,
        of: of so many.
        missing: The boards that are not, and why.
        known: The accuracy known for that many missing, if it is.
        payload: By board, the bytes of its question and of its answer, without headers.
    """

    logits: Tensor
    voted: int
    of: int
    missing: Mapping[str, str]
    known: Missing | None
    payload: Mapping[str, tuple[int, int]]


class Coordinator:
    """Asks the boards of a placed folder. Any number of requests may be on their way, from any number of threads.

    Args:
        placed: What is where.
        transport: How boards are reached; it is closed with this.
        quorum: The least number of groups, or sub-models, that an answer may come from.
        deadline: Seconds a request may take. None: ten times the plan's latency, at least a second.
        rhythm: How often boards are asked for a sign of life.

    Raises:
        SettingError: `quorum` or `deadline` is outside its range, or a board has no address.
        BundleError: The hub's part is damaged.
    """

    def __init__(
        self,
        placed: Placed,
        transport: Transport,
        *,
        quorum: int = 1,
        deadline: float | None = None,
        rhythm: Rhythm = USUAL,
    ) -> None:
        if not 1 <= quorum <= placed.members:
            raise SettingError(f"quorum is {quorum}: it must be from 1 to {placed.members}, which is all there are.")
        if deadline is not None and not 0 < deadline < float("inf"):
            raise SettingError(f"the deadline is {deadline:g} s: it must be above 0 and finite.")
        self.placed = placed
        self.deadline = deadline or max(LEAST_DEADLINE, DEADLINE_PER_LATENCY * placed.plan.latency_s)
        self._quorum = quorum
        self._hub = open_hub(placed)
        self._ids = itertools.count(secrets.randbits(62))  # not those of another hub, nor of one that was here before
        self._transport = transport
        addresses = {share.board.name: share.board.address for share in placed.plan.shares}
        self._membership = Membership(
            {
                part: transport.connect(Place(part.board, addresses[part.board], placed.folder / part.file))
                for part in placed.parts
            },
            rhythm,
        )
        self._membership.wait(_all_heard_of, monotonic() + rhythm.patience)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        quorum: int = 1,
        deadline: float | None = None,
        transport: str = "grpc",
        security: Security = PLAIN,
        rhythm: Rhythm = USUAL,
    ) -> Self:
        """A coordinator of a placed folder, with a transport by its name.

        Raises:
            MissingExtraError: The library of the transport is not installed.
        """
        placed = Placed.load(folder)
        opened = open_transport(transport, security)
        try:
            return cls(placed, opened, quorum=quorum, deadline=deadline, rhythm=rhythm)
        except BaseException:
            opened.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. The workers go on."""
        self._membership.close()
        self._transport.close()

    def absent(self) -> dict[str, str]:
        """The boards that are left out at the moment, and why."""
        return self._membership.absent()

    def ask(self, pixels: Tensor) -> Asked:
        """Send pictures, uint8 (B, 3, S, S), to every board that is there. The deadline counts from now.

        Where fewer than the quorum are, half of the time is spent on waiting for them; in vain, nobody is asked.
        """
        begun = monotonic()
        request = Request(next(self._ids), len(pixels), begun + self.deadline, self._membership)
        if self._membership.wait(lambda members: _present(members) >= self._quorum, begun + self.deadline / 2):
            questions = self._hub.questions(pixels)
            for admitted in self._membership.present():
                request.ask(admitted, questions[admitted[0].part.board])
        return Asked(self, request)

    def _answer(self, request: Request) -> Answer:
        request.close()
        voted = sum(len(part.members) for part in self.placed.parts if part.board in request.answers)
        of = self.placed.members
        absent = self._membership.absent()
        missing = {
            part.board: request.reasons.get(part.board) or absent.get(part.board, "was not asked")
            for part in self.placed.parts
            if part.board not in request.answers
        }
        if voted < self._quorum:
            reasons = "; ".join(f"{board}: {reason}" for board, reason in missing.items())
            raise SpreadError(
                f"{voted} of {of} answered, and the quorum is {self._quorum}. Missing: {reasons}. Start the workers "
                "that are down, or allow a longer deadline or a smaller quorum."
            )
        logits = self._hub.decide(request.answers)
        return Answer(logits, voted, of, missing, self.placed.known.get(of - voted), request.payload)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request on its way."""

    coordinator: Coordinator
    request: Request

    def answer(self) -> Answer:
        """What those say together that answer until the deadline.

        Raises:
            SpreadError: They are fewer than the quorum; the message says who is missing, and why.
        """
        return self.coordinator._answer(self.request)


def _present(members: Sequence[Member]) -> int:
    return sum(len(member.part.members) for member in members if member.present)


def _all_heard_of(members: Sequence[Member]) -> bool:
    return all(member.present or member.failures for member in members)
