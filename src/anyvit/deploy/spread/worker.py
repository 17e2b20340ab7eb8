"""What a board runs: its part, questions in, answers out, whatever carries them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from anyvit import __version__
from anyvit.backends.precision import on_threads
from anyvit.deploy.spread.parts import Part
from anyvit.deploy.spread.refusal import Refusal, Status
from anyvit.deploy.spread.wire import VERSION, Message


@dataclass(frozen=True, slots=True)
class Card:
    """What a board says it is.

    Attributes:
        board: The name that its part was made for.
        weights: The hash of its part.
        wire: The version of messages it speaks.
        anyvit: The version of AnyViT it runs.
    """

    board: str
    weights: str
    wire: int = VERSION
    anyvit: str = __version__

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Card:
        """Read a card; what later versions add to it is passed over.

        Raises:
            Refusal: INVALID_ARGUMENT, it is none.
        """
        try:
            data: dict[str, Any] = json.loads(content)
            return cls(str(data["board"]), str(data["weights"]), int(data["wire"]), str(data["anyvit"]))
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(Status.INVALID_ARGUMENT, "what it says of itself is no card of AnyViT") from error


class Worker:
    """Answers with a part.

    Args:
        part: What the board holds.
        num_threads: Threads of the model.
    """

    def __init__(self, part: Part, num_threads: int = 1) -> None:
        self._part = part
        self._num_threads = num_threads

    def hello(self) -> bytes:
        """The card of this board."""
        return Card(self._part.board, self._part.hash).to_bytes()

    def answer(self, content: bytes) -> bytes:
        """The answer to a question, both as messages.

        Raises:
            Refusal: The question is malformed, meant for other weights, or not what the part is asked with.
        """
        question = Message.from_bytes(content)
        with on_threads(self._num_threads):
            return self._part.answer(question).to_bytes()
