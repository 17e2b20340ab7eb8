"""What goes wrong with a request, as its client reads it: a status, and JSON of `type`, `message` and `hint`."""

from __future__ import annotations

import math
from typing import Any

LONGEST_MESSAGE = 500
"""Characters. Messages repeat what a client has sent, which may be long."""


class Problem(Exception):  # noqa: N818  (an answer, not a failure of the server)
    """An answer that is no prediction.

    Args:
        status: Of HTTP.
        type: A word that programs compare.
        message: What is wrong, with the value.
        hint: What to do about it.
        retry_after: Seconds after which to ask again; None: asking again does not help.
    """

    def __init__(self, status: int, type: str, message: str, hint: str, *, retry_after: float | None = None) -> None:
        if len(message) > LONGEST_MESSAGE:
            message = message[: LONGEST_MESSAGE - 4] + " ..."
        super().__init__(message)
        self.status, self.type, self.message, self.hint = status, type, message, hint
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer. HTTP counts in whole seconds."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return headers | ({"Connection": "close"} if self.status == 408 else {})  # the rest may never come

    def to_json(self) -> dict[str, Any]:
        return {"type": self.type, "message": self.message, "hint": self.hint}


def bad_request(message: str, hint: str) -> Problem:
    """The request cannot be read."""
    return Problem(400, "bad_request", message, hint)


def too_large(message: str, hint: str) -> Problem:
    """More bytes, pixels or images than are taken."""
    return Problem(413, "too_large", message, hint)


def overloaded(seconds: float) -> Problem:
    """Even the fastest candidate would not be done in time."""
    return Problem(
        429,
        "overloaded",
        "more images come than can be answered in time, even by the fastest candidate",
        f"Ask again in {seconds:.2g} s, or more slowly.",
        retry_after=seconds,
    )


def deadline_exceeded(message: str) -> Problem:
    """The answer would come too late, so it was not computed."""
    return Problem(504, "deadline_exceeded", message, "Allow more with the header Anyvit-Deadline, or ask again.")


def not_ready(why: str, seconds: float) -> Problem:
    """The engine is not there, or not yet."""
    return Problem(503, "not_ready", why, "Ask again when /readyz answers 200.", retry_after=seconds)


def engine_failed(why: str) -> Problem:
    """The engine could not answer, and is there again or will be."""
    return Problem(500, "engine_failed", why, "Ask again; where it happens each time, look into the server's log.")
