"""Every image is looked at once when a data set is opened: small sets are decoded and stay in memory, of larger ones
the headers are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from anyvit.data.decode import BrokenImageError
from anyvit.data.images import ArrayImages, EncodedImages, Images, Selection

MEMORY_LIMIT = 1 << 30  # bytes of decoded pixels that may stay in memory
_SAMPLE = 256  # headers that the estimate of the decoded size rests on
_CHUNK = 64  # images a thread takes at a time


@dataclass(frozen=True, eq=False, slots=True)
class Checked:
    """What became of a collection of images.

    Attributes:
        images: Those that can be used.
        kept: Their positions (N,) in the collection that was checked.
        shorter_sides: Their shorter sides (N,) in pixels.
        broken: Name and cause of each one that cannot be used.
    """

    images: Selection
    kept: np.ndarray
    shorter_sides: np.ndarray
    broken: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Look:
    content_hash: int = 0
    shorter_side: int = 0
    pixels: np.ndarray | None = None
    broken: str | None = None


def check(images: Images, *, in_memory: bool, seen: Callable[[int], None] = lambda count: None) -> Checked:
    """Look at every image; with `in_memory` decode each and keep its pixels. `seen` hears of every few images done.

    Raises:
        DataError: an image cannot be read at all.
    """

    def look(index: int) -> _Look:
        try:
            if not in_memory:
                return _Look(images.content_hash(index), min(images.size(index)))
            pixels = np.asarray(images.load(index))
            return _Look(images.content_hash(index), min(pixels.shape[:2]), pixels)
        except BrokenImageError as error:
            return _Look(broken=str(error))

    chunks = [range(start, min(start + _CHUNK, len(images))) for start in range(0, len(images), _CHUNK)]
    looks: list[_Look] = []
    # Reading and decoding let other threads run; what else an image may come from need not bear several.
    with ThreadPoolExecutor(os.cpu_count() if isinstance(images, EncodedImages) else 1) as threads:
        for done in threads.map(lambda chunk: [look(index) for index in chunk], chunks):
            looks += done
            seen(len(done))
    kept = np.flatnonzero([look.broken is None for look in looks])
    whole = [looks[index] for index in kept]
    hashes = np.array([look.content_hash for look in whole], dtype=np.uint64)
    selection = Selection(images, kept, hashes)
    if in_memory:
        names = [images.name(int(index)) for index in kept]
        pixels = [look.pixels for look in whole if look.pixels is not None]
        selection = Selection(ArrayImages(pixels, names), np.arange(len(kept)), hashes)
    sides = np.array([look.shorter_side for look in whole], dtype=np.int64)
    return Checked(selection, kept, sides, tuple(look.broken for look in looks if look.broken is not None))


def fits_in_memory(collections: Iterable[Images]) -> bool:
    """True where all collections together, decoded, stay below about 1 GiB, judged by a sample of their headers."""
    return sum(_decoded_bytes(images) for images in collections) < MEMORY_LIMIT


def _decoded_bytes(images: Images) -> float:
    step = max(1, len(images) // _SAMPLE)
    sizes = []
    for index in range(0, len(images), step):
        try:
            width, height = images.size(index)
        except BrokenImageError:
            continue
        sizes.append(3 * width * height)
    return len(images) * float(np.mean(sizes)) if sizes else 0.0
