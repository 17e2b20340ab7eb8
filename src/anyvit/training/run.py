"""What happens between two steps of a training: validation, checkpoints, news, and the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from anyvit.errors import Interrupted
from anyvit.protocols import Event, Progress
from anyvit.training.interruption import CtrlC
from anyvit.training.meter import Meter
from anyvit.training.ranks import agreed, most
from anyvit.training.schedule import Schedule

Validate = Callable[[nn.Module, int], Mapping[str, float]]
"""Called with the averaged model in eval mode and the steps done; its figures go to the history."""

_CHECKPOINT_EVERY_S = 60.0
_CHECKPOINT_SHARE = 0.05  # of the time at most, for a large model on a slow disk
_EVENT_EVERY_S = 0.25


class Run:
    """Where a training stands.

    Args:
        schedule: When it validates and ends.
        ctrl_c: Looked at after each step.
        validate: Called as the schedule says, and at the end.
        progress: Called with news.
        averaged: Gives what is validated.
        save: Writes a checkpoint, this run's `state_dict` in it.
        log: Called with each new entry of the history.
    """

    def __init__(
        self,
        schedule: Schedule,
        ctrl_c: CtrlC,
        validate: Validate | None,
        progress: Progress,
        *,
        averaged: Callable[[], nn.Module],
        save: Callable[[], None],
        log: Callable[[Mapping[str, float]], None],
    ) -> None:
        self.schedule = schedule
        self.ctrl_c = ctrl_c
        self.validate = validate
        self.progress = progress
        self.averaged = averaged
        self.save = save
        self.log = log
        self.meter = Meter()
        self.history: list[dict[str, float]] = []
        self.finished = False
        self._news: dict[str, float] = {}  # what validation said last
        self._saved_at = self._told_at = time.monotonic()
        self._began = (0.0, 0.0)  # seconds and progress when this part of the run began

    def state_dict(self) -> dict[str, Any]:
        return {
            "elapsed": self.schedule.elapsed,
            "validation_seconds": self.schedule.validation_seconds,
            "meter": self.meter.state_dict(),
            "history": self.history,
            "finished": self.finished,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.schedule.resume(state["elapsed"], state["validation_seconds"])
        self.meter.load_state_dict(state["meter"])
        self.history = state["history"]
        self.finished = state["finished"]

    def begin(self, step: int, lr: float) -> None:
        """A session begins after `step` steps; it may have been stopped before their validation."""
        for entry in self.history:
            self.log(entry)
        self._began = (self.schedule.elapsed, self.schedule.progress(step))
        self._between_steps(step, lr)

    def step_done(self, step: int, lr: float, figures: Mapping[str, float], *, images: int) -> None:
        """The `step`-th step is done. Raises Interrupted where Ctrl-C was pressed in it."""
        self.meter.add(figures, images=images)
        self.schedule.step_seconds = self.meter.slowest
        self._between_steps(step, lr)

    def _between_steps(self, step: int, lr: float) -> None:
        finished = self.schedule.finished(step)
        validated = bool(self.history) and self.history[-1]["step"] == step
        due = not validated and (finished or self.schedule.validation_due(step))
        self.finished, due, save = map(bool, most(finished, due, finished or due or self._checkpoint_due()))
        if due:
            self._validate(step, lr)
            self.finished = bool(*most(self.schedule.finished(step)))  # there may be no time left
        if save:
            self._save()
        self._tell(step)
        self.meter.go_on()  # what was done here is no part of the next step
        if any(most(self.ctrl_c.requested)):
            raise Interrupted("interrupted")

    def _validate(self, step: int, lr: float) -> None:
        begun = time.monotonic()
        figures = agreed(partial(self._figures, self.averaged().eval(), step))
        self.schedule.validated(time.monotonic() - begun)
        entry = {
            "step": step,
            "epoch": step / self.schedule.steps_per_epoch,
            "seconds": self.schedule.elapsed,
            "lr": lr,
            **self.meter.take(),
            **figures,
        }
        self.history.append(entry)
        self.log(entry)
        self._news = {name: entry[name] for name in figures}

    def _figures(self, model: nn.Module, step: int) -> dict[str, float]:
        with self.ctrl_c.may_raise():
            figures = self.validate(model, step) if self.validate else {}
        return {name: float(value) for name, value in figures.items()}

    def _checkpoint_due(self) -> bool:
        every = max(_CHECKPOINT_EVERY_S, self.schedule.checkpoint_seconds / _CHECKPOINT_SHARE)
        return time.monotonic() - self._saved_at > every

    def _save(self) -> None:
        begun = time.monotonic()
        self.save()
        self._saved_at = time.monotonic()
        self.schedule.checkpoint_seconds = self._saved_at - begun

    def _tell(self, step: int) -> None:
        now = time.monotonic()
        if now - self._told_at < _EVENT_EVERY_S and not self.finished:
            return
        self._told_at = now
        done = self.schedule.progress(step)
        seconds_left = 0.0 if self.finished else self.schedule.seconds_left(step, self._began)
        self.progress(Event("train", done=done, seconds_left=seconds_left, figures={**self.meter.recent, **self._news}))
