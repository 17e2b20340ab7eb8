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
from anyvit.training.recipes import Recipe

Precision = Literal["32-true", "bf16-mixed"]  # as Lightning names them
FLOAT32: Precision = "32-true"
BFLOAT16: Precision = "bf16-mixed"

_ROUNDS = 6
_ENOUGH_SECONDS = 5.0
_LARGE_SECONDS = 0.3  # a step this long has work for all threads
_WORTH_IT = 0.8  # bfloat16 costs accuracy, so it has to gain something
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
    model: nn.Module, objective: Objective, recipe: Recipe, *, image_size: int, num_classes: int
) -> Execution:
    """What is fastest here for steps of `objective`, of what `recipe` leaves open.

    On a GPU it is bfloat16 wherever the GPU knows it. On the CPU a few steps are timed, all ways in turn: bfloat16 has
    to be a fifth faster; and small models often run faster on one thread, on a busy machine many times so.
    """
    threads = recipe.threads or torch.get_num_threads()
    precisions: tuple[Precision, ...]
    if recipe.precision != "auto":
        precisions = (BFLOAT16 if recipe.precision == "bfloat16" else FLOAT32,)
    elif torch.cuda.is_available():
        precisions = (BFLOAT16 if torch.cuda.is_bf16_supported() else FLOAT32,)
    else:
        precisions = (FLOAT32,) if torch.backends.mps.is_available() else (FLOAT32, BFLOAT16)
    counts = (threads,) if recipe.threads or torch.accelerator.is_available() else tuple({threads, 1})
    ways = [Execution(precision, count) for precision in precisions for count in sorted(counts)]
    return ways[0] if len(ways) == 1 else _fastest(ways, model, objective, recipe.batch_size, image_size, num_classes)


def _fastest(
    ways: list[Execution], model: nn.Module, objective: Objective, batch_size: int, image_size: int, num_classes: int
) -> Execution:
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
    most = max(way.threads for way in ways)
    if seconds(next(way for way in ways if way.threads == most)) > _LARGE_SECONDS:
        ways = [way for way in ways if way.threads == most]
    times: dict[Execution, list[float]] = {way: [] for way in ways}
    for done in range(_ROUNDS):
        if done > 1 and time.perf_counter() - begun > _ENOUGH_SECONDS:
            break
        for way in ways:
            times[way].append(seconds(way))
    typical = {way: statistics.median(times[way][1:] or times[way]) for way in ways}  # the first round warms up
    best: dict[Precision, Execution] = {}
    for way in sorted(ways, key=typical.__getitem__):
        best.setdefault(way.precision, way)
    if FLOAT32 in best and BFLOAT16 in best and typical[best[BFLOAT16]] >= _WORTH_IT * typical[best[FLOAT32]]:
        return best[FLOAT32]
    return min(best.values(), key=typical.__getitem__)
