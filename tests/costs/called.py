"""Functions that tests call in a new process."""

import os
import signal
import sys
import time
from pathlib import Path

from anyvit.errors import BudgetError, DataError, MissingExtraError


class StrangeImageError(DataError):
    """An error of another house, known by its parent."""


def echo(argument):
    print("noise on stdout")
    print("noise on stderr", file=sys.stderr)
    return {"argument": argument, "process": os.getpid(), "directory": os.getcwd()}


def refuse(words):
    raise BudgetError(words)


def lack(_):
    raise MissingExtraError("nncf", "int8")


def refuse_strangely(words):
    raise StrangeImageError(words)


def crash(_):
    print("about to divide")
    return 1 / 0


def vanish(status):
    os._exit(status)


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def answer_nan(_):
    return float("nan")


def wait(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def hold(megabytes):
    """Touch that much memory for a moment, then give most of it back."""
    held = bytearray(b"x") * (megabytes * 1_000_000)
    del held
    return "held"
