"""What can go wrong, said once: each error carries the exit status of the command that meets it.

AnyViTError                1
├── SettingError           2   a value outside its range, an unknown name, arguments that contradict each other
│   └── ModelError         2   a model that does not exist, or that a lever or backend cannot take
├── BudgetError            3   a bound that no candidate meets
├── DataError              4   images that are missing, damaged, or too few
├── BundleError            5   a bundle or checkpoint that is damaged, newer, or not one at all
├── ExportError            6   an exported model that does not answer like the one it came from
├── MissingExtraError      7   a library that an extra would install
├── SpreadError            8   a model that its boards cannot hold, or too few of them that answer
└── Interrupted          130   Ctrl-C; the run can be resumed
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class AnyViTError(Exception):
    """The root of all errors meant for the user: one line that names the value and the remedy."""

    exit_code = 1
    told = False  # by another process of the same run: it is said once


class SettingError(AnyViTError):
    """A value outside its range, an unknown name, or arguments that contradict each other."""

    exit_code = 2


class ModelError(SettingError):
    """A model that does not exist, or that a lever or backend cannot take."""


class BudgetError(AnyViTError):
    """A bound that no candidate meets."""

    exit_code = 3


class DataError(AnyViTError):
    """Images that are missing, damaged, or too few."""

    exit_code = 4


class BundleError(AnyViTError):
    """A bundle or checkpoint that is damaged, newer than this version, or not one at all."""

    exit_code = 5


class ExportError(AnyViTError):
    """An exported model that does not answer like the one it came from."""

    exit_code = 6


class MissingExtraError(AnyViTError):
    """A library that is not installed, and the extra that brings it."""

    exit_code = 7

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed. Install it with: pip install 'anyvit[{extra}]'")


class SpreadError(AnyViTError):
    """A model that its boards cannot hold, or too few of them that answer."""

    exit_code = 8


class Interrupted(AnyViTError):  # noqa: N818  (an end the user asked for)
    """Ctrl-C. What was done is kept; the same command resumes."""

    exit_code = 130


def told(error: AnyViTError) -> tuple[str, str]:
    """An error as another process takes it (`retold`): the name of the nearest class of this file, and the words."""
    known = next(kind for kind in type(error).__mro__ if kind.__module__ == __name__)
    return known.__name__, str(error)


def retold(name: str, words: str) -> AnyViTError:
    """The error again; built without its constructor, which may ask for more than words."""
    known = getattr(sys.modules[__name__], name, AnyViTError)
    error: AnyViTError = known.__new__(known, words)
    return error


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The words for a misspelt name: `unknown model 'vit_smal'. Did you mean 'vit_small'? Known: …`."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{guess} Known: {', '.join(known)}."
