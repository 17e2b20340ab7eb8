"""Threads and cores while something is timed, given back afterwards whatever happens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from anyvit.costs.device import available_cores


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """PyTorch computes with `threads` threads, and the process stays on as many cores, where the platform allows it."""
    threads_before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with _on_cores(threads):
            yield
    finally:
        torch.set_num_threads(threads_before)


@contextmanager
def _on_cores(count: int) -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity") or count >= available_cores():
        yield
        return
    own = os.sched_getaffinity(0)
    before = {}
    for task in _tasks():
        with suppress(OSError):
            before[task] = os.sched_getaffinity(task)
    try:
        few = set(sorted(own)[:count])
        _move({task: few for task in before})
        yield
    finally:  # a thread that started meanwhile was born on the few cores
        _move({task: before.get(task, own) for task in _tasks()})


def _tasks() -> list[int]:
    """The threads of this process, for an affinity belongs to a thread; without /proc the calling one."""
    try:
        return [int(task) for task in os.listdir("/proc/self/task")]
    except OSError:
        return [0]


def _move(cores: dict[int, set[int]]) -> None:
    for task, allowed in cores.items():
        with suppress(OSError):  # the thread has ended, or the system forbids it
            os.sched_setaffinity(task, allowed)
