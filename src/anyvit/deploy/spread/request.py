"""One request: a question to each board that is there, and what came back in time.

When its time is over it is closed. What comes later, or belongs to another request, finds nobody.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial
from time import monotonic

from torch import Tensor

from anyvit.deploy.spread.membership import Admitted, Membership
from anyvit.deploy.spread.parts import ANSWERS, QUESTIONS
from anyvit.deploy.spread.placed import PlacedPart
from anyvit.deploy.spread.refusal import Refusal, Status, words
from anyvit.deploy.spread.wire import HEADER_BYTES, Message


class Request:
    """Asks boards, and collects.

    Args:
        id: By which answers are told from those to other requests.
        images: How many there are in it.
        ends: When it closes, by the monotonic clock.
        membership: Is told who answered and who failed.
    """

    def __init__(self, id: int, images: int, ends: float, membership: Membership) -> None:
        self.id = id
        self.images = images
        self.answers: dict[str, Tensor] = {}
        self.reasons: dict[str, str] = {}
        self.payload: dict[str, tuple[int, int]] = {}  # bytes there and back, without headers
        self._ends = ends
        self._membership = membership
        self._waiting: dict[str, Admitted] = {}
        self._changed = threading.Condition()

    def ask(self, admitted: Admitted, tensor: Tensor) -> None:
        """Send a board its question."""
        member, _ = admitted
        part = member.part
        message = Message(self.id, QUESTIONS[part.kind], part.hash, tensor).to_bytes()
        with self._changed:
            self._waiting[part.board] = admitted
        asked = member.link.ask(message, max(0.001, self._ends - monotonic()))
        asked.add_done_callback(partial(self._settle, part, len(message) - HEADER_BYTES))

    def close(self) -> None:
        """Wait for all answers or the end of the time; those who did not answer are left out."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, max(0.0, self._ends - monotonic()))
            late, self._waiting = self._waiting, {}
            self.reasons |= dict.fromkeys(late, "no answer within the deadline")
        for board, admitted in late.items():
            self._membership.failed(*admitted, self.reasons[board])

    def _settle(self, part: PlacedPart, sent: int, asked: Future[bytes]) -> None:
        answer, problem = None, ""
        try:
            content = asked.result()
            answer = self._checked(part, Message.from_bytes(content))
        except Exception as error:  # whatever goes wrong with one board costs that board, not the request
            problem = words(error)
        with self._changed:
            admitted = self._waiting.pop(part.board, None)
            if admitted is None:
                return  # too late
            if answer is None:
                self.reasons[part.board] = problem
            else:
                self.answers[part.board] = answer
                self.payload[part.board] = sent, len(content) - HEADER_BYTES
            self._changed.notify_all()
        if problem:
            self._membership.failed(*admitted, problem)
        else:
            self._membership.answered(*admitted)

    def _checked(self, part: PlacedPart, answer: Message) -> Tensor:
        """The tensor of an answer to this request, by the part that was asked, in the shape expected."""
        given = (answer.request, answer.weights, answer.kind, tuple(answer.tensor.shape))
        wanted = (self.id, part.hash, ANSWERS[part.kind], (self.images, *part.gives))
        for name, one, other in zip(("request", "weights", "kind", "shape"), given, wanted, strict=True):
            if one != other:
                raise Refusal(Status.INVALID_ARGUMENT, f"an answer of {name} {one}, not {other}")
        return answer.tensor
