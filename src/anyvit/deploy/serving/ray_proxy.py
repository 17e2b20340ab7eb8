"""What runs in Ray's proxy, which stands between clients and replicas: it loads this by name, so this needs little.

What a replica answers passes unchanged. Where none answers, the proxy has plain text or nothing: here it becomes JSON,
as every other error is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anyvit.deploy.serving import problems
from anyvit.deploy.serving.problems import Problem

OF_RAY = "/-/"
"""Paths that Ray answers for its own use."""

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
    return [Middleware(InOurWords)]


class InOurWords:
    """Around an application: its answers, and JSON in the place of an error that is none or of no answer at all.

    Args:
        app: Ray's proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(OF_RAY):
            await self._app(scope, receive, send)
            return
        if known.replicas == 0:
            await _say(_problem(503), send)
            return
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
