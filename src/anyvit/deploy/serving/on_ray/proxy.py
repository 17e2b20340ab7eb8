"""What stands around Ray's proxy, which stands between clients and replicas. It is loaded there, so it needs little.

What a replica answers passes unchanged.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import count
from math import inf
from time import monotonic

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anyvit.deploy.serving import problems
from anyvit.deploy.serving.lag import MOST_LAG, Lag
from anyvit.deploy.serving.problems import Problem

OBJECTIVE = "ANYVIT_SERVE_OBJECTIVE"
"""The variable of the environment that tells it, in seconds."""

OF_RAY = "/-/"
"""Paths that Ray answers for its own use."""

PREDICT, DEADLINE = "/v1/predict", b"anyvit-deadline"

RETRY_S = 1.0


@dataclass(slots=True)
class Known:
    """What the proxy knows.

    Attributes:
        replicas: How many there are; None: nobody has asked one yet.
    """

    replicas: int | None = None


known = Known()


def middlewares() -> list[Middleware]:
    """What Ray puts around its proxy."""
    return [Middleware(Door, objective=float(os.environ[OBJECTIVE]))]


class Door:
    """Around Ray's proxy: turns away what would wait in Ray, and makes JSON of an error that is none, or of silence.

    A replica's controller answers within the objective, or says that it cannot. Where a request has waited longer, and
    none that came later was answered either, it waits in Ray, which takes more requests than it gets done: others are
    told at once, until it has caught up.

    Args:
        app: Ray's proxy.
        objective: Seconds from the arrival of a request to its answer.
    """

    def __init__(self, app: ASGIApp, objective: float) -> None:
        self._app, self._objective = app, objective
        self._waiting: dict[int, float] = {}  # since when; the oldest first
        self._numbers = count()
        self._lag: Lag | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(OF_RAY):
            await self._app(scope, receive, send)
        elif known.replicas == 0:
            await _say(_problem(503), send)
        elif scope["path"] != PREDICT:
            await self._pass(scope, receive, send)
        elif self._is_behind():
            await _say(_problem(429), send)
        else:
            await self._ask(scope, receive, send)

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A question: it waits from its last byte on, unless its client has said how long it may take."""
        number = next(self._numbers)
        patient = any(name == DEADLINE for name, _ in scope["headers"])

        async def note_end() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False) and not patient:
                self._waiting[number] = monotonic()
            return message

        async def note_answer(message: Message) -> None:
            while number in self._waiting:  # who came before and is not answered yet waits in a replica
                del self._waiting[next(iter(self._waiting))]
            await send(message)

        try:
            await self._pass(scope, note_end, note_answer)
        finally:
            self._waiting.pop(number, None)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        status: int | None = None  # of what the proxy says itself
        begun = False

        async def pass_on(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start" and _is_of_proxy(message):
                status = message["status"]
            if status is None:
                begun = True
                await send(message)

        await self._app(scope, receive, pass_on)
        if not begun:
            await _say(_problem(status), send)

    def _is_behind(self) -> bool:
        if self._lag is None:
            self._lag = Lag()
            self._lag.watch()
        since = next(iter(self._waiting.values()), inf)
        return monotonic() - since > self._objective or self._lag.seconds > MOST_LAG * self._objective


def _is_of_proxy(start: Message) -> bool:
    kind = Headers(raw=list(start.get("headers", ()))).get("content-type", "")
    return start["status"] >= 400 and not kind.startswith("application/json")


def _problem(status: int | None) -> Problem:
    if status == 429:
        return problems.overloaded(RETRY_S)
    if status == 408:
        return problems.deadline_exceeded("no replica has answered in time")
    words = {None: "the replica that had this request is gone", 404: "the model is not deployed yet, or no longer"}
    return problems.not_ready(words.get(status, "no replica is there to answer"), RETRY_S)


async def _say(problem: Problem, send: Send) -> None:
    body = json.dumps(problem.to_json()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **problem.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
