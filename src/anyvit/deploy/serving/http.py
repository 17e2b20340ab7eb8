"""The web server around the application: an address, until it is asked to end; then what has begun is finished."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from anyvit.errors import SettingError

KEEP_ALIVE_S = 75
"""Of a connection between requests: longer than clients and proxies usually keep theirs, so that these close first."""

DRAIN_S = 30
"""For requests that have begun, once the server is asked to end."""


class Server(uvicorn.Server):
    """Serves an application at an address.

    Args:
        app: The application.
        host: Name or address of this machine; `127.0.0.1` is for this machine alone.
        port: 0: any that is free.

    Raises:
        SettingError: The address is none of this machine, or taken.
    """

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        for name, level in (("uvicorn.error", logging.WARNING), ("python_multipart", logging.ERROR)):
            logging.getLogger(name).setLevel(level)
        super().__init__(
            uvicorn.Config(
                app,
                ws="none",
                log_config=None,
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=DRAIN_S,
            )
        )
        self._socket = listening(host, port)

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def serve_until_told(self) -> None:
        """Serve until Ctrl-C, SIGTERM or `end`. A second signal does not wait for what has begun."""
        try:
            self.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def end(self) -> None:
        """Finish what has begun, and end."""
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn has it, but that a signal which was answered is not raised again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        SettingError: The address is none of this machine, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingError(
            f"cannot serve at {host}:{port} ({reason}). Name a free port with --port, or an address of this machine "
            "with --host."
        ) from error
