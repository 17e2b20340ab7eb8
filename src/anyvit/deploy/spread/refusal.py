"""Why a message, a question or an answer is not taken: a named status, whatever carries the messages."""

from __future__ import annotations

from enum import StrEnum

from anyvit.errors import AnyViTError


class Status(StrEnum):
    """The names are gRPC's, and mean what they mean there."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"  # it is malformed, or not what the board takes
    DATA_LOSS = "DATA_LOSS"  # its checksum does not fit
    FAILED_PRECONDITION = "FAILED_PRECONDITION"  # it is for other weights or another version
    UNAUTHENTICATED = "UNAUTHENTICATED"  # the token is missing or wrong
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"  # it is too large, or too many wait already
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"  # it did not come in time
    UNAVAILABLE = "UNAVAILABLE"  # nobody is there
    INTERNAL = "INTERNAL"  # the board failed over it


class Refusal(AnyViTError):  # noqa: N818  (an answer, to the one who asked)
    """Something that is not taken, and why.

    Attributes:
        status: The kind of reason.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def words(error: BaseException) -> str:
    """Why a board was left out: the status of a refusal and its reason, or whatever else went wrong."""
    kind = str(error.status) if isinstance(error, Refusal) else type(error).__name__
    return f"{kind}: {error}"
