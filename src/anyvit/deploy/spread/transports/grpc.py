"""gRPC to boards: one lasting channel each, any number of questions on it, raw bytes in generic methods."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import grpc

from anyvit.deploy.spread.refusal import Refusal, Status
from anyvit.deploy.spread.security import Security, split_address
from anyvit.deploy.spread.transports import Place
from anyvit.errors import SettingError

SERVICE = "anyvit.Board"
HELLO = f"/{SERVICE}/Hello"
ANSWER = f"/{SERVICE}/Answer"
AUTHORIZATION = "authorization"
SCHEME = "Bearer "

MAX_ANSWER = 16 * 2**20
"""Bytes of an answer: far more than class tokens need."""

_OPTIONS = (
    ("grpc.max_send_message_length", -1),  # the worker says how much it takes
    ("grpc.max_receive_message_length", MAX_ANSWER),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),  # an answer that comes late is worth nothing
    ("grpc.use_local_subchannel_pool", 1),  # two hubs in one process share no state
)


class GrpcTransport:
    """Boards that run `anyvit worker`."""

    def __init__(self, security: Security) -> None:
        self._metadata = ((AUTHORIZATION, SCHEME + security.token),) if security.token else ()
        self._credentials = None
        if security.encrypted:
            self._credentials = grpc.ssl_channel_credentials(security.authority, security.key, security.certificate)

    def connect(self, place: Place) -> GrpcLink:
        """A link to a board.

        Raises:
            SettingError: The board has no address.
        """
        if not place.address:
            raise SettingError(f"board {place.name} has no address: give it one (host:port) in the devices file.")
        split_address(place.address)
        if self._credentials:
            channel = grpc.secure_channel(place.address, self._credentials, _OPTIONS)
        else:
            channel = grpc.insecure_channel(place.address, _OPTIONS)
        return GrpcLink(channel, self._metadata)

    def close(self) -> None:
        """Links close one by one."""


class GrpcLink:
    """A channel to one board, which gRPC opens again when it breaks."""

    def __init__(self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._metadata = metadata
        self._hello = channel.unary_unary(HELLO)
        self._answer = channel.unary_unary(ANSWER)

    def hello(self, timeout: float) -> Future[bytes]:
        return self._call(self._hello, b"", timeout)

    def ask(self, message: bytes, timeout: float) -> Future[bytes]:
        return self._call(self._answer, message, timeout)

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: Any, message: bytes, timeout: float) -> Future[bytes]:
        future: Future[bytes] = Future()
        try:
            call = method.future(message, timeout=timeout, metadata=self._metadata)
        except ValueError:  # the channel was closed
            future.set_exception(Refusal(Status.UNAVAILABLE, "the connection was closed"))
        else:
            call.add_done_callback(lambda call: _settle(future, call))
        return future


def _settle(future: Future[bytes], call: Any) -> None:
    code = call.code()
    if code is grpc.StatusCode.OK:
        future.set_result(call.result())
    else:
        status = Status(code.name) if code.name in Status.__members__ else Status.INTERNAL
        future.set_exception(Refusal(status, call.details() or code.name))
