"""Images by index, wherever they lie: in files, in bytes, in arrays, or as a part of others."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from anyvit.data.decode import BrokenImageError, decode, decoded_size
from anyvit.errors import DataError


class Images(Protocol):
    """Images by index."""

    @property
    def in_memory(self) -> bool:
        """True where the pixels are at hand and `load` decodes nothing."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What the user knows the image by."""

    def load(self, index: int) -> Image.Image:
        """The upright 8-bit RGB image. Raises BrokenImageError, or DataError where nothing can be read."""

    def size(self, index: int) -> tuple[int, int]:
        """Width and height, without decoding where that can be. Raises as `load` does."""

    def content_hash(self, index: int) -> int:
        """64 bits, equal for equal content: over the encoded bytes where there are any, otherwise over the pixels."""


class EncodedImages(ABC):
    """Images that lie somewhere as encoded bytes; a kind says where. Several threads may read at a time."""

    in_memory = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str: ...

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The bytes of one image. Raises DataError where they cannot be read."""

    def load(self, index: int) -> Image.Image:
        try:
            return decode(self.encoded(index))
        except BrokenImageError as error:
            raise BrokenImageError(f"{self.name(index)} ({error})") from error

    def size(self, index: int) -> tuple[int, int]:
        try:
            return decoded_size(self.encoded(index))
        except BrokenImageError as error:
            raise BrokenImageError(f"{self.name(index)} ({error})") from error

    def content_hash(self, index: int) -> int:
        return hash_bytes(self.encoded(index))


class FileImages(EncodedImages):
    """Images in files, named relative to `root` where one is given."""

    def __init__(self, paths: Sequence[Path], root: Path | None = None) -> None:
        self.paths = paths
        self.root = root

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        path = self.paths[index]
        if self.root is None or not path.is_relative_to(self.root):
            return str(path)
        return path.relative_to(self.root).as_posix()

    def encoded(self, index: int) -> bytes:
        return read_file(self.paths[index])


class BytesImages(EncodedImages):
    """Images held as encoded bytes."""

    def __init__(self, contents: Sequence[bytes], names: Sequence[str]) -> None:
        self.contents = contents
        self.names = names

    def __len__(self) -> int:
        return len(self.contents)

    def name(self, index: int) -> str:
        return self.names[index]

    def encoded(self, index: int) -> bytes:
        return self.contents[index]


class ArrayImages:
    """Images held as pixels: uint8 arrays (H, W, 3), which may differ in size."""

    in_memory = True

    def __init__(self, pixels: Sequence[np.ndarray], names: Sequence[str]) -> None:
        self.pixels = pixels
        self.names = names

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        return self.names[index]

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def size(self, index: int) -> tuple[int, int]:
        height, width, _ = self.pixels[index].shape
        return width, height

    def content_hash(self, index: int) -> int:
        return hash_pixels(self.pixels[index])


class Selection:
    """Some of the images of another collection, whose content hashes are already known.

    Args:
        images: The collection that is chosen from.
        indices: Which of them, (N,) int64.
        hashes: Their content hashes, (N,) uint64.
    """

    def __init__(self, images: Images, indices: np.ndarray, hashes: np.ndarray) -> None:
        self.images = images
        self.indices = indices
        self.hashes = hashes

    @property
    def in_memory(self) -> bool:
        return self.images.in_memory

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.images.name(int(self.indices[index]))

    def load(self, index: int) -> Image.Image:
        return self.images.load(int(self.indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        return self.images.size(int(self.indices[index]))

    def content_hash(self, index: int) -> int:
        return int(self.hashes[index])

    def select(self, chosen: np.ndarray) -> Selection:
        """The images at `chosen`, a mask or positions."""
        return Selection(self.images, self.indices[chosen], self.hashes[chosen])


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises DataError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}). Check that it exists and is yours to read."
        ) from error


def hash_bytes(content: bytes) -> int:
    """64 bits of BLAKE2b, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def hash_pixels(pixels: np.ndarray) -> int:
    """As `hash_bytes`, over the shape and the values of an array of uint8."""
    return hash_bytes(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes())
