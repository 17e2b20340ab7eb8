"""Ctrl-C between two steps: a step that has begun is finished first, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from anyvit.errors import Interrupted


class CtrlC:
    """Takes over Ctrl-C while it is entered: the first one asks, the second one ends at once.

    Outside the main thread, where Python lets nobody take it over, and in a background job, which is to ignore it, it
    stays as it was.

    Args:
        together: Other processes are at the same step, and nobody leaves them in it: the second one asks too.
    """

    def __init__(self, *, together: bool = False) -> None:
        self.together = together
        self.requested = False
        self._may_raise = False
        self._before: Any = None

    def __enter__(self) -> CtrlC:
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if threading.current_thread() is threading.main_thread() and not ignored:
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def take_sigterm_too(self) -> None:
        """Let SIGTERM ask like Ctrl-C, until somebody else takes it."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)

    @contextmanager
    def may_raise(self) -> Iterator[None]:
        """Here the first Ctrl-C ends at once too."""
        self.check()
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False

    def check(self) -> None:
        """Raise Interrupted where it was asked for."""
        if self.requested:
            raise Interrupted("interrupted")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested, True
        if (again and not self.together) or self._may_raise:
            raise Interrupted("interrupted")
