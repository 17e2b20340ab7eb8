"""Collections of garbage that do not hold up answers, or requests."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


def spare_what_is_there() -> None:
    """Let no later collection look at the objects that there are now: those of the libraries, which stay.

    There are so many that a collection takes 0.35 s over them, in which nobody is answered. It is for the whole
    process, so for one that does nothing but serve.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries see to it that nothing of theirs is left at the end, and say so loudly


@contextmanager
def what_is_there_spared() -> Iterator[None]:
    """The same inside of the `with` alone."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
