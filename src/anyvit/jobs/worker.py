"""A part of a spread model, served on the board that holds it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from anyvit.costs.units import BYTES, read_amount
from anyvit.deploy.spread.parts import Part
from anyvit.deploy.spread.security import Security
from anyvit.deploy.spread.transports import import_engine
from anyvit.deploy.spread.worker import Worker
from anyvit.errors import SettingError
from anyvit.protocols import Event, Progress, silent

LEAST_MESSAGE = 4096


def worker(
    part: str,
    *,
    listen: str = "127.0.0.1:7002",
    token_file: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_ca: str | None = None,
    threads: int = 1,
    max_message: str = "16MB",
    queue: int = 16,
    progress: Progress = silent,
) -> None:
    """Answer with a part of a spread model until Ctrl-C or SIGTERM.

    Args:
        part: A file that `spread` has written, `placed/part-2.safetensors`. To take a new one, start the worker again.
        listen: The address to serve at. Beyond this machine, a token or certificates are asked for.
        token_file: A file with the token that the hub has to give. None: the environment variable ANYVIT_TOKEN.
        tls_cert: The certificate of this worker, PEM.
        tls_key: Its key, PEM.
        tls_ca: The certificates that sign those of hubs, PEM; hubs without one are refused.
        threads: Threads of the model.
        max_message: The size of the largest message that is read.
        queue: Questions that may wait for their turn; further ones are refused.
        progress: Called with news.

    Raises:
        BundleError: The part is missing, damaged, or newer than this AnyViT reads.
        SettingError: The address is none, is taken, or open to others without a token or certificates; or a value is
            outside its range.
        MissingExtraError: grpcio is not installed.
    """
    for name, value in (("threads", threads), ("queue", queue)):
        if value < 1:
            raise SettingError(f"{name} is {value}: it must be at least 1.")
    size = read_amount(max_message, BYTES, "MB, kB, GB, B, MiB, KiB, GiB", name="max_message")
    if not LEAST_MESSAGE <= size < 2**31:
        raise SettingError(f"max_message is {max_message}: it must be from {LEAST_MESSAGE}B to below 2GiB.")
    security = Security.from_files(token_file=token_file, tls_cert=tls_cert, tls_key=tls_key, tls_ca=tls_ca)
    import_engine("grpc")
    from anyvit.deploy.spread.transports.grpc_server import BoardServer, Limits

    opened = Part.open(Path(part))
    with _until_asked_to_end() as asked_to_end:
        limits = Limits(message=int(size), queue=queue)
        server = BoardServer(Worker(opened, threads), listen, security=security, limits=limits)
        address = f"{listen.rpartition(':')[0]}:{server.port}"
        progress(Event("worker", f"{opened.board} serves {opened.described} at {address}"))
        try:
            asked_to_end.wait()
        finally:
            server.stop()
    progress(Event("worker", f"{opened.board} has ended"))


@contextmanager
def _until_asked_to_end() -> Iterator[threading.Event]:
    """What is set by Ctrl-C and SIGTERM inside. Only the main thread hears them."""
    asked = threading.Event()

    def hear(number: int, frame: FrameType | None) -> None:
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
