"""Shows a job's events: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from anyvit.cli.show import errors
from anyvit.protocols import Event

SECONDS_BETWEEN_LINES = 10.0


class ShowProgress(AbstractContextManager["ShowProgress"]):
    """The progress callback of the commands. News stays; how far a stage is, is overwritten where it can be.

    It writes to standard error, so that standard output holds the answer alone.
    """

    def __init__(self) -> None:
        state = TextColumn("{task.fields[state]}", markup=False)
        columns = (TextColumn("{task.description:<8}"), BarColumn(), TaskProgressColumn(), state)
        self._bars = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> ShowProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        if event.done is None:
            errors.print(f"{event.stage:<8} {event.message}", markup=False)
        elif errors.is_terminal:
            self._update_bar(event)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            errors.print(f"{event.stage:<8} {event.done:4.0%}  {describe(event)}".rstrip(), markup=False)

    def _update_bar(self, event: Event) -> None:
        for stage, task in list(self._tasks.items()):
            if stage != event.stage:
                self._bars.remove_task(task)
                del self._tasks[stage]
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bars.add_task(event.stage, total=1.0, state="")
        self._bars.update(self._tasks[event.stage], completed=event.done, state=describe(event))


def describe(event: Event) -> str:
    """The figures of an event on a line: `loss 1.234  accuracy 91.2%  850 images/s  2:05 left`."""
    words = [event.message] if event.message else []
    words += [_figure(name, value) for name, value in event.figures.items()]
    if event.seconds_left is not None:
        minutes, seconds = divmod(round(event.seconds_left), 60)
        words.append(f"{minutes}:{seconds:02d} left")
    return "  ".join(words)


def _figure(name: str, value: float) -> str:
    if name.startswith("accuracy"):
        return f"{name} {value:.1%}"
    if name == "images_per_second":
        return f"{value:.0f} images/s"
    return f"{name.replace('_', ' ')} {value:.3g}"
