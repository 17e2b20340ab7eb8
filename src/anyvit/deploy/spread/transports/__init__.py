"""How messages reach boards: one interface, a registry, and an existing engine behind each member.

A new transport is a new file and one line in `TRANSPORTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol

from anyvit.deploy.spread.security import Security
from anyvit.errors import MissingExtraError, SettingError, unknown


@dataclass(frozen=True, slots=True)
class Place:
    """Where a board is: its name, its address (host:port), and the file of its part on this machine."""

    name: str
    address: str
    part: Path


class Link(Protocol):
    """A lasting connection to one board. Nothing here waits; what a future fails with is a `Refusal`."""

    def hello(self, timeout: float) -> Future[bytes]:
        """The board's card, which says what it holds: the first word, and the heartbeat afterwards."""

    def ask(self, message: bytes, timeout: float) -> Future[bytes]:
        """Its answer. Any number of questions may be on their way."""

    def close(self) -> None:
        """Hang up."""


class Transport(Protocol):
    """An engine that carries messages."""

    def connect(self, place: Place) -> Link:
        """A link to a board, whether it is there yet or not."""

    def close(self) -> None:
        """Release what the engine holds."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Where a transport is defined, and which extra brings its library."""

    module: str
    kind: str
    library: str
    extra: str


TRANSPORTS: Mapping[str, Engine] = {
    "grpc": Engine("anyvit.deploy.spread.transports.grpc", "GrpcTransport", "grpcio", "spread"),
    "ray": Engine("anyvit.deploy.spread.transports.ray", "RayTransport", "ray", "ray"),
}


def open_transport(name: str, security: Security) -> Transport:
    """The transport of that name.

    Raises:
        SettingError: There is none.
        MissingExtraError: Its library is not installed.
    """
    if name not in TRANSPORTS:
        raise SettingError(unknown("transport", name, TRANSPORTS))
    return getattr(import_engine(name), TRANSPORTS[name].kind)(security)


def import_engine(name: str) -> ModuleType:
    """The module of a transport. Raises MissingExtraError where its library is not installed."""
    engine = TRANSPORTS[name]
    try:
        return import_module(engine.module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(engine.library, engine.extra) from error
