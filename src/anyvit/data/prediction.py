"""Images to predict: named one by one, by folder, by pattern, or piped in."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from anyvit.data.decode import SUFFIXES
from anyvit.data.images import BytesImages, FileImages, Images
from anyvit.errors import DataError


def open_images(inputs: Sequence[str]) -> Images:
    """The images that `inputs` name, in that order; those of a folder or pattern by path. Nothing is decoded yet.

    Args:
        inputs: Files; folders, searched to the bottom; patterns such as `photos/*.jpg` or `photos/**/*.png`; or the
            one word `-`, an encoded image on standard input.

    Raises:
        DataError: an input names no image.
    """
    if list(inputs) == ["-"]:
        return BytesImages([sys.stdin.buffer.read()], ["-"])
    if "-" in inputs:
        raise DataError("'-' (standard input) is one image and cannot be mixed with files. Name it alone.")
    paths = [path for text in inputs for path in _paths(text)]
    if not paths:
        raise DataError("no images named. Name files, folders, patterns, or '-' for standard input.")
    return FileImages(paths)


def _paths(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_file():
        return [path]  # named outright: whatever its suffix
    matches = path.rglob("*") if path.is_dir() else map(Path, glob.iglob(str(path), recursive=True))
    found = sorted(match for match in matches if match.suffix.lower() in SUFFIXES and match.is_file())
    if not found:
        known = ", ".join(sorted(SUFFIXES))
        missing = "holds no images" if path.is_dir() else "matches no image"
        raise DataError(f"{text} {missing}. It may be a file, a folder or a pattern; in folders these count: {known}.")
    return found
