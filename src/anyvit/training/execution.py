"""How this machine trains fastest: in bfloat16 or not, on all threads or one. Measured once, then fixed for the run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from anyvit.training.objectives import Objective

Precision = Literal["32-true", "bf16-mixed"]  # as Lightning names them
FLOAT32: Precision = "32-true"
BFLOAT16: Precision = "bf16-mixed"

_ROUNDS = 6
_ENOUGH_SECONDS = 5.0
_LARGE_SECONDS = 0.3  # a step this long has work for all threads
_WORTH_IT = 0.9  # bfloat16 costs accuracy, so it has to gain something
_PIXELS = 256 * 32 * 32  # in a batch; a large model on large images would take minutes otherwise


@dataclass(frozen=True)
class Execution:
    """A precision and a number of CPU threads."""

    precision: Precision
    threads: int

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Here PyTorch runs on so many threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def choose_execution(
    model: nn.Module, objective: Objective, batch_size: int, image_size: int, num_classes: int
) -> Execution:
    """What is fastest here for steps of `objective`.

    On a GPU it is bfloat16 wherever the GPU knows it. On the CPU a few steps are timed, all ways in turn: bfloat16 has
    to be at least a tenth faster; and small models often run faster on one thread, on a busy machine many times so.
    """
    threads = torch.get_num_threads()
    if torch.cuda.is_available():
        return Execution(BFLOAT16 if torch.cuda.is_bf16_supported() else FLOAT32, threads)
    if torch.backends.mps.is_available():
        return Execution(FLOAT32, threads)
    model = deepcopy(model).train()
    batch = min(batch_size, max(4, _PIXELS // image_size**2))
    images = torch.zeros(batch, 3, image_size, image_size)
    targets = torch.full((batch, num_classes), 1 / num_classes)

    def seconds(execution: Execution) -> float:
        begun = time.perf_counter()
        with execution.applied(), torch.autocast("cpu", torch.bfloat16, enabled=execution.precision == BFLOAT16):
            loss, _ = objective.loss(model, images, targets, step=0)
        with execution.applied():
            loss.backward()
        return time.perf_counter() - begun

    begun = time.perf_counter()
    large = seconds(Execution(FLOAT32, threads)) > _LARGE_SECONDS
    counts = {threads} if large else {threads, 1}
    ways = [Execution(precision, count) for precision in (FLOAT32, BFLOAT16) for count in sorted(counts)]
    times: dict[Execution, list[float]] = {way: [] for way in ways}
    for done in range(_ROUNDS):
        if done > 1 and time.perf_counter() - begun > _ENOUGH_SECONDS:
            break
        for way in ways:
            times[way].append(seconds(way))
    typical = {way: statistics.median(times[way][1:] or times[way]) for way in ways}  # the first round warms up
    exact = min((way for way in ways if way.precision == FLOAT32), key=typical.__getitem__)
    short = min((way for way in ways if way.precision == BFLOAT16), key=typical.__getitem__)
    return short if typical[short] < _WORTH_IT * typical[exact] else exact
