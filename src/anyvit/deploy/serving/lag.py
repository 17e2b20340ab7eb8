"""How far the event loop is behind: so long a request has waited already when it is first seen.

Where more requests come than can even be read, they wait unseen, in sockets. Answers to them would be late though the
queue is short; with the lag taken off their time, they are turned away, which is cheap, and the loop catches up.
"""

from __future__ import annotations

import asyncio

TICK_S = 0.01
FADE = 0.7
"""What is left of a lag after a tick without one."""

MOST_LAG = 0.25
"""Of the objective: an event loop that is further behind turns requests away without a further look."""

CLOCK_S = 0.002
"""Of a tick's own delay: the clock of a loop ticks in milliseconds, and so much behind is nothing."""


class Lag:
    """Watches the event loop that it is started on.

    Attributes:
        seconds: How far it is behind, of late.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._due = 0.0
        self._next: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Begin."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + TICK_S
        self._next = loop.call_at(self._due, self._tick, loop)

    def stop(self) -> None:
        """End."""
        if self._next:
            self._next.cancel()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self.seconds = max(loop.time() - self._due - CLOCK_S, FADE * self.seconds)
        self.watch()
