"""Collections of garbage that do not hold up answers."""

from __future__ import annotations

import atexit
import gc


def spare_what_is_there() -> None:
    """Let no later collection look at the objects that there are now: those of the libraries, which stay.

    There are so many that a collection takes 0.35 s over them, in which nobody is answered. It is for the whole
    process, so for one that does nothing but serve. Called again, it collects what has become garbage of them.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries see to it that nothing of theirs is left at the end, and say so loudly
