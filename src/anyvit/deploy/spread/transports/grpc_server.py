"""The worker's side of gRPC: who may ask, how much is read, how long is waited, how many are served.

Methods are taken as streams of one message, which on the wire is the same as a plain call: so a token is seen before a
byte of the question is read, and a client that sends it too slowly is told so instead of holding a place.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from anyvit.deploy.spread.refusal import Refusal, Status
from anyvit.deploy.spread.security import PLAIN, Security, see_that_guarded, split_address
from anyvit.deploy.spread.transports.grpc import AUTHORIZATION, SCHEME, SERVICE
from anyvit.errors import SettingError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker spends on those who ask.

    Attributes:
        message: Bytes of one message.
        calls: Calls at a time, those included that are still being read. With `message` it bounds the memory.
        queue: Questions that wait for their turn; one is computed at a time.
        patience: Seconds a question may take to arrive.
    """

    message: int = 16 * 2**20
    calls: int = 64
    queue: int = 16
    patience: float = 10.0


USUAL = Limits()


class Board(Protocol):
    """What is served: it says what it holds, and answers questions."""

    def hello(self) -> bytes: ...

    def answer(self, content: bytes) -> bytes: ...


class BoardServer:
    """Serves a worker at an address.

    Args:
        worker: What answers.
        listen: `host:port`; port 0 takes a free one.
        security: The token to ask for, and TLS.
        limits: What is spent on those who ask.

    Raises:
        SettingError: The address is none or taken, or is open to the network without a token or certificates.
    """

    def __init__(self, worker: Board, listen: str, *, security: Security = PLAIN, limits: Limits = USUAL) -> None:
        host, _ = split_address(listen)
        see_that_guarded(host, security)
        self._worker, self._security, self._limits = worker, security, limits
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="board")
        self._queued = 0
        self.port = _in_loop(self._start(host, listen))

    def stop(self, grace: float = 1.0) -> None:
        """Take no more questions, and end when those at hand are answered or `grace` seconds have passed."""
        _in_loop(self._server.stop(grace))
        self._computing.shutdown(wait=False, cancel_futures=True)

    async def _start(self, host: str, listen: str) -> int:
        self._turn = asyncio.Lock()
        self._server = grpc.aio.server(options=_options(self._limits), maximum_concurrent_rpcs=self._limits.calls)
        handlers = {
            "Hello": grpc.stream_unary_rpc_method_handler(self._hello),
            "Answer": grpc.stream_unary_rpc_method_handler(self._answer),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, self._server)
        port = self._bind(listen)
        await self._server.start()
        for service in ("", SERVICE):
            await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
        return port

    def _bind(self, listen: str) -> int:
        security = self._security
        try:
            if not security.certificate:
                return self._server.add_insecure_port(listen)
            pair = [(security.key, security.certificate)]
            credentials = grpc.ssl_server_credentials(pair, security.authority, security.authority is not None)
            return self._server.add_secure_port(listen, credentials)
        except RuntimeError as error:
            raise SettingError(
                f"cannot listen on {listen}: the address is taken or not of this machine, or the certificate or key "
                "is none. Choose another port, or look at the files."
            ) from error

    async def _hello(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
        async with _named_status(context):
            self._authenticate(context)
            return self._worker.hello()

    async def _answer(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
        async with _named_status(context):
            self._authenticate(context)
            return await self._compute(await self._receive(requests))

    def _authenticate(self, context: grpc.aio.ServicerContext) -> None:
        if self._security.token is None:
            return
        given = dict(context.invocation_metadata() or ()).get(AUTHORIZATION, "")
        if not given:
            raise Refusal(Status.UNAUTHENTICATED, "this worker asks for a token, and none was given")
        if not self._security.admits(str(given).removeprefix(SCHEME)):
            raise Refusal(Status.UNAUTHENTICATED, "the token is not the one of this worker")

    async def _receive(self, requests: AsyncIterator[bytes]) -> bytes:
        try:
            return await asyncio.wait_for(anext(requests), self._limits.patience)
        except TimeoutError:
            seconds = f"{self._limits.patience:g} s"
            raise Refusal(Status.DEADLINE_EXCEEDED, f"the question did not arrive within {seconds}") from None
        except StopAsyncIteration:
            raise Refusal(Status.INVALID_ARGUMENT, "a call without a question") from None

    async def _compute(self, content: bytes) -> bytes:
        if self._queued >= self._limits.queue:
            raise Refusal(Status.RESOURCE_EXHAUSTED, f"{self._queued} questions wait already")
        self._queued += 1
        try:
            async with self._turn:
                computing = asyncio.get_running_loop().run_in_executor(self._computing, self._worker.answer, content)
                try:
                    return await asyncio.shield(computing)
                except asyncio.CancelledError:
                    await asyncio.wait([computing])  # it cannot be stopped: the next one waits for its end
                    raise
        finally:
            self._queued -= 1


class _named_status:  # noqa: N801  (reads as a function where it is used)
    """What goes wrong inside ends the call with a named status, and nothing else."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self._context = context

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Refusal):
            await self._context.abort(grpc.StatusCode[error.status.name], str(error))
        elif isinstance(error, Exception):
            log.error("a question was not answered", exc_info=error)
            await self._context.abort(grpc.StatusCode.INTERNAL, "the worker failed over this question")


def _options(limits: Limits) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_receive_message_length", limits.message),
        ("grpc.max_send_message_length", limits.message),
        ("grpc.max_concurrent_streams", limits.queue),  # of one connection: no client takes all places
        ("grpc.max_metadata_size", 16_384),
        ("grpc.server_handshake_timeout_ms", int(1000 * limits.patience)),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.so_reuseport", 0),  # a taken port is an error, not shared
    )


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The one event loop of all servers of this process, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="boards", daemon=True).start()
    return loop


def _in_loop(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()
