"""What a load test sends: pictures of labelled data, pictures without labels, or made-up ones, as encoded bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from anyvit.data import FORMATS, open_data, open_images
from anyvit.data.decode import BrokenImageError, decoded_size
from anyvit.data.formats.format import Labelled
from anyvit.data.images import EncodedImages, Images
from anyvit.errors import DataError
from anyvit.protocols import Event, Progress

MOST_BYTES = 512 << 20
"""Of pictures that are held; where there are more, those that were read are sent again."""

_MADE_UP = 16


@dataclass(frozen=True, slots=True)
class Pictures:
    """Encoded pictures.

    Attributes:
        contents: Each as bytes: as it lies on the disk, or PNG where there are only pixels.
        names: What the user knows each by.
        labels: The class of each. None: not known.
        notes: What a user should know, one sentence each.
    """

    contents: list[bytes]
    names: list[str]
    labels: list[str] | None
    notes: tuple[str, ...] = ()


def labelled_pictures(source: str, classes: Sequence[str], count: int, *, seed: int, progress: Progress) -> Pictures:
    """Up to `count` labelled pictures, drawn from those that a model has not seen if it was fitted as usual.

    Args:
        source: Labelled images of any format. Their test split, or their val split; where they have neither, the test
            that `fit` draws with its own seed, 0.
        classes: Those of the model.
        count: How many to draw.
        seed: Of the draw.
        progress: Hears how far the reading is.

    Raises:
        DataError: Nothing that opens, no images, or a class that the model does not know.
    """
    data, positions = _held_out(source, progress)
    strange = sorted(set(data.labels) - set(classes))
    if strange:
        raise DataError(
            f"the model that is served does not know class {_named(strange)} of {source}. "
            f"Its classes are {_named(classes)}: rename what is the same, leave out what is not, or send them without "
            "labels, as images."
        )
    found = _read(source, data.images, data.labels, _draw(positions, count, seed), progress)
    if len(positions) == len(data.images):
        return found
    note = (
        f"{source} has no test split: pictures are of the {len(positions)} that `fit` holds out where no seed is given."
    )
    return replace(found, notes=(*found.notes, note))


def unlabelled_pictures(source: str, count: int, *, seed: int, progress: Progress) -> Pictures:
    """Up to `count` of the pictures in a file, a folder or a pattern.

    Raises:
        DataError: There are none.
    """
    images = open_images([source])
    return _read(source, images, None, _draw(np.arange(len(images)), count, seed), progress)


def made_up_pictures(image_size: int, *, seed: int) -> Pictures:
    """A few blurred patterns, JPEG of `image_size` pixels a side."""
    random = np.random.default_rng(seed)
    contents = []
    for _ in range(_MADE_UP):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BICUBIC)
        contents.append(_saved(image, "JPEG"))
    note = "The pictures were made up: where answers depend on what is seen, yours may cost more or less."
    return Pictures(contents, [f"made up {number}" for number in range(_MADE_UP)], None, (note,))


def _held_out(source: str, progress: Progress) -> tuple[Labelled, np.ndarray]:
    """Labelled images, and the positions of those among them that are held out from training."""
    text = os.path.expanduser(source)
    try:
        splits = next((format.read(text).splits for format in FORMATS if format.opens(text)), {})
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error}). Check that all of it is yours to read.") from error
    if given := splits.get("test") or splits.get("val"):
        return given, np.arange(len(given.images))
    test = open_data(source, progress=progress).splits["test"].images  # or it says what opens
    hashes = {test.content_hash(index) for index in range(len(test))}
    images = splits["train"].images
    drawn = [index for index in range(len(images)) if images.content_hash(index) in hashes]
    return splits["train"], np.array(drawn)


def _read(
    source: str, images: Images, labels: Sequence[str] | None, positions: np.ndarray, progress: Progress
) -> Pictures:
    """The pictures at `positions`, but for damaged ones, as far as they may be held."""
    found = Pictures([], [], None if labels is None else [])
    damaged, size = 0, 0
    for done, index in enumerate(map(int, positions)):
        if size > MOST_BYTES:
            return replace(found, notes=(f"{done} of {len(positions)} pictures are held in memory and sent again.",))
        if done % 64 == 0:
            progress(Event("data", f"{done} of {len(positions)} pictures", done / len(positions)))
        try:
            content = _encoded(images, index)
        except BrokenImageError:
            damaged += 1
            continue
        size += len(content)
        found.contents.append(content)
        found.names.append(images.name(index))
        if labels is not None and found.labels is not None:
            found.labels.append(labels[index])
    if not found.contents:
        raise DataError(f"none of {len(positions)} pictures of {source} can be read. Name others.")
    note = f"{damaged} of {len(positions)} pictures of {source} are damaged and were not sent."
    return replace(found, notes=(note,) * (damaged > 0))


def _encoded(images: Images, index: int) -> bytes:
    if isinstance(images, EncodedImages):
        content = images.encoded(index)
        decoded_size(content)  # or it is broken
        return content
    return _saved(images.load(index), "PNG")


def _saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def _draw(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 2]).permutation(positions)[:count]


def _named(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
