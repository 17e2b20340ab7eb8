"""How far a run is: the learning rate, the moments of validation and the end, by steps or by the clock."""

from __future__ import annotations

import math
import time

VALIDATIONS = 20
"""How often a run validates, at most."""

_SHARE_OF_TIME = 0.1  # what validation may take of a run that the clock ends


class Schedule:
    """The progress of a run that ends after `epochs`, after `seconds`, or whichever comes first.

    With `epochs` alone, all but `elapsed` is a function of the step.

    Args:
        epochs: Passes over the training images; may be a fraction.
        seconds: For all sessions of the run together, the last validation and checkpoint included.
        steps_per_epoch: Batches in a pass.
    """

    def __init__(self, epochs: float | None, seconds: float | None, steps_per_epoch: int) -> None:
        self.total_steps = max(1, round(epochs * steps_per_epoch)) if epochs is not None else None
        self.seconds = seconds
        self.steps_per_epoch = steps_per_epoch
        self._validations = min(VALIDATIONS, math.ceil(epochs)) if epochs is not None else VALIDATIONS
        self._begun = time.monotonic()
        self._before = 0.0  # seconds of earlier sessions
        self._next_validation = seconds / VALIDATIONS if seconds else 0.0
        self.validation_seconds = 0.0
        self.checkpoint_seconds = 0.0
        self.step_seconds = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, without the time between two sessions."""
        return self._before + time.monotonic() - self._begun

    def resume(self, elapsed: float, validation_seconds: float) -> None:
        """Carry on after `elapsed` seconds of earlier sessions, the last validation of which took so long."""
        self._before = elapsed
        self.validated(validation_seconds)

    def progress(self, step: int) -> float:
        """The share of the run that is done before `step`, in 0..1."""
        shares = [0.0]
        if self.total_steps is not None:
            shares.append(step / self.total_steps)
        if self.seconds is not None:
            shares.append(self.elapsed / max(self._last_moment, 1e-9))
        return min(1.0, max(shares))

    def finished(self, step: int) -> bool:
        """Whether the run ends here: all steps are done, or there is no time for another."""
        if self.total_steps is not None and step >= self.total_steps:
            return True
        return self.seconds is not None and step > 0 and self.elapsed + self.step_seconds > self._last_moment

    def validation_due(self, step: int) -> bool:
        """Whether the model is to be validated after `step` steps, as it is at the end in any case."""
        if step == 0:
            return False
        if self.seconds is None:
            assert self.total_steps is not None
            before, now = ((at * self._validations) // self.total_steps for at in (step - 1, step))
            return now > before
        return self._next_validation <= self.elapsed <= self._last_moment - self.validation_seconds

    def validated(self, seconds: float) -> None:
        """Note that a validation took `seconds`: time is kept for the last one, and they stay a small share."""
        self.validation_seconds = seconds
        if self.seconds is not None:
            self._next_validation = self.elapsed + max(self.seconds / VALIDATIONS, seconds / _SHARE_OF_TIME)

    def seconds_left(self, step: int, since: tuple[float, float]) -> float | None:
        """Seconds until the end, by the clock or at the pace since a moment (elapsed, progress); None: not known."""
        left = [self.seconds - self.elapsed] if self.seconds is not None else []
        elapsed, gained = self.elapsed - since[0], self.progress(step) - since[1]
        if self.total_steps is not None and gained > 0:
            left.append(elapsed / gained * (1 - self.progress(step)))
        return max(0.0, min(left)) if left else None

    @property
    def _last_moment(self) -> float:
        """The moment when the last step must be done, to leave time for what follows it."""
        assert self.seconds is not None
        return self.seconds - 1.25 * (self.validation_seconds + self.checkpoint_seconds)


def lr_factor(progress: float, *, warmup: float, final: float) -> float:
    """The learning rate as a share of its peak: a straight rise over `warmup`, then half a cosine down to `final`.

    Args:
        progress: The share of the run that is done, in 0..1.
        warmup: The share of the run that warms up.
        final: The share of the peak that is left at the end.
    """
    if progress < warmup:
        return max(0.01, progress / warmup)  # never 0: the first step counts too
    done = (progress - warmup) / (1 - warmup)
    return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
