"""What a format is: something that recognizes a source and lists its labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from anyvit.data.images import Images

SPLIT_OF_WORD = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""The words people use for the three splits."""


@dataclass(frozen=True, eq=False, slots=True)
class Labelled:
    """Images, and the name of the class of each."""

    images: Images
    labels: Sequence[str]


@dataclass(frozen=True, eq=False, slots=True)
class Found:
    """What a source holds.

    Attributes:
        splits: By "train", "val", "test"; "train" alone where the source has no splits.
        notes: What was left out, and why.
        mirrored: True where an image flipped from left to right keeps its label, as far as the format knows.
    """

    splits: Mapping[str, Labelled]
    notes: tuple[str, ...] = ()
    mirrored: bool = True


class Format(Protocol):
    """One way in which labelled images come."""

    name: str
    summary: str  # one line, as a user would recognize it

    def opens(self, source: str) -> bool:
        """True where `source` looks like this format; `read` may still find fault with it."""

    def read(self, source: str) -> Found:
        """The images of `source`, listed but not yet decoded. Raises DataError."""
