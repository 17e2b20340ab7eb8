"""A labelled data set, opened, checked and split: what every job works on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anyvit.data.images import Images, Selection


@dataclass(frozen=True, eq=False, slots=True)
class Split:
    """Images and the positions (N,) int64 of their classes in `DataSet.classes`."""

    images: Images
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, count: int) -> Split:
        """Up to `count` of the images, evenly spread over all."""
        chosen = np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64)
        hashes = np.zeros(len(self), dtype=np.uint64)
        return Split(Selection(self.images, np.arange(len(self)), hashes).select(chosen), self.labels[chosen])


@dataclass(frozen=True, eq=False, slots=True)
class DataSet:
    """Labelled images in splits that share no content.

    Attributes:
        source: What was opened, as the user wrote it.
        classes: Class names, sorted.
        splits: "train", "val" and "test".
        image_size: The typical shorter side in pixels, before any resizing.
        notes: What a user should know, one sentence each: images left out, splits made, classes missing or rare.
        mirrored: True where an image flipped from left to right keeps its label.
        class_weights: Weights (K,) float32 of the classes in the loss, 1 on average over the training images; None
            where the classes are about as frequent as each other.
    """

    source: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    image_size: int
    notes: tuple[str, ...]
    mirrored: bool
    class_weights: np.ndarray | None = None

    def digest(self, split: str) -> str:
        """A hexadecimal fingerprint of the images of a split and their class names, whatever their order."""
        images, labels = self.splits[split].images, self.splits[split].labels
        lines = sorted(f"{images.content_hash(i):016x} {self.classes[labels[i]]}" for i in range(len(images)))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
