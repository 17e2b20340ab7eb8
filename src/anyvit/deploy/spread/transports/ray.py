"""Ray to boards: each is an actor of the cluster, which Ray places, starts, and starts again when it crashes.

Who may ask is the cluster's own matter: Ray trusts whoever can reach it, and carries messages in its own way.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from anyvit.deploy.spread.parts import Part
from anyvit.deploy.spread.refusal import Refusal, Status
from anyvit.deploy.spread.security import Security
from anyvit.deploy.spread.transports import Place
from anyvit.deploy.spread.worker import Worker
from anyvit.errors import BundleError

Outcome = tuple[str, bytes]
"""The name of a status and its reason, or "" and what was asked for: a refusal is an answer, not a failure of Ray."""


class BoardActor:
    """What runs in the cluster. It takes one question at a time, and shows its card meanwhile."""

    def __init__(self, content: bytes, name: str) -> None:
        self._worker = Worker(Part.from_bytes(content, Path(name)))

    def hello(self) -> Outcome:
        return "", self._worker.hello()

    def answer(self, message: bytes) -> Outcome:
        try:
            return "", self._worker.answer(message)
        except Refusal as refusal:
            return refusal.status, str(refusal).encode()


_OPTIONS: dict[str, Any] = {
    "max_restarts": -1,
    "num_cpus": 0,  # a cluster with fewer cores than boards runs them all the same
    "scheduling_strategy": "SPREAD",
    "concurrency_groups": {"cards": 1},
}
_Actor: Any = ray.remote(**_OPTIONS)(BoardActor)


class RayTransport:
    """Boards that this process starts as actors: on the cluster that Ray finds, or a new one on this machine."""

    def __init__(self, security: Security) -> None:
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)

    def connect(self, place: Place) -> RayLink:
        """A link to a board, whose actor is started.

        Raises:
            BundleError: Its part cannot be read.
        """
        try:
            return RayLink(place.part.read_bytes(), str(place.part))
        except OSError as error:
            raise BundleError(f"{place.part} cannot be read ({error.strerror}): Ray's boards start from it.") from error

    def close(self) -> None:
        if self._started:
            ray.shutdown()


class RayLink:
    """A handle on the actor of one board."""

    def __init__(self, content: bytes, name: str) -> None:
        kept = ray.put(content)  # as long as this lives, a new actor finds it
        self._start: Callable[[], Any] = lambda: _Actor.remote(kept, name)
        self._actor = self._start()

    def hello(self, timeout: float) -> Future[bytes]:
        return self._call(self._actor, lambda actor: actor.hello.options(concurrency_group="cards").remote())

    def ask(self, message: bytes, timeout: float) -> Future[bytes]:
        return self._call(self._actor, lambda actor: actor.answer.remote(message))

    def close(self) -> None:
        ray.kill(self._actor)

    def _call(self, actor: Any, send: Callable[[Any], Any]) -> Future[bytes]:
        future: Future[bytes] = Future()

        def settle(outcome: Future[Outcome]) -> None:
            try:
                status, content = outcome.result()
            except RayError as error:
                future.set_exception(self._refusal(actor, error))
                return
            if status:
                future.set_exception(Refusal(Status(status), content.decode()))
            else:
                future.set_result(content)

        try:
            send(actor).future().add_done_callback(settle)
        except RayError as error:
            future.set_exception(self._refusal(actor, error))
        return future

    def _refusal(self, actor: Any, error: RayError) -> Refusal:
        if isinstance(error, ActorDiedError) and self._actor is actor:  # for good: what only crashed Ray brings back
            self._actor = self._start()
        return Refusal(Status.UNAVAILABLE, str(error).partition("\n")[0])
