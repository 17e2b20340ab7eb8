"""Open labelled images of any format: find the format, look at every image, join classes by name, split, report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anyvit.data.checking import check, fits_in_memory
from anyvit.data.dataset import DataSet, Split
from anyvit.data.formats import FORMATS
from anyvit.data.formats.format import Found
from anyvit.data.images import Selection
from anyvit.data.splitting import TEST_SHARE, VAL_SHARE, class_weights, stratified
from anyvit.errors import DataError
from anyvit.protocols import Event, Progress, silent

MOST_BROKEN = 0.05  # share of images that may be damaged


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """The usable images of a split, the positions (N,) of their classes and their shorter sides (N,)."""

    images: Selection
    labels: np.ndarray
    sides: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, chosen: np.ndarray) -> _Part:
        return _Part(self.images.select(chosen), self.labels[chosen], self.sides[chosen])


def open_data(source: str | Path, *, seed: int = 0, progress: Progress = silent) -> DataSet:
    """Open labelled images of any format in `FORMATS`, always as train, val and test.

    Where no test images are given, 20 % of each class become the test; where no val is given, 15 % of the rest. A
    given val without a test becomes the test. No content is in two splits.

    Args:
        source: A folder, a file, or the name of a data set; a `Path` is never taken for a name.
        seed: Of the draw of the splits.
        progress: Hears how far the look at the images is.

    Raises:
        DataError: nothing that opens; no images; more than 5 % damaged ones; fewer than two classes; a class of
            fewer than two different images; images that cannot be read.
    """
    found = _read(source)
    parts, classes, notes = _check(source, found, progress)
    _refuse_too_few(source, parts, classes)
    notes += _drop_doubles(source, parts)
    notes += _complete_splits(source, parts, seed)
    notes += _missing_classes(parts, classes)
    train = parts["train"]
    weights = class_weights(train.labels, len(classes))
    if weights is not None:
        notes.append(_imbalance(train.labels, classes))
    mirrored = found.mirrored and not _sided(classes)
    if not mirrored:
        notes.append("Images are not mirrored in training: their labels would not stay the same.")
    splits = {name: Split(parts[name].images, parts[name].labels) for name in ("train", "val", "test")}
    return DataSet(str(source), classes, splits, _typical(train.sides), tuple(notes), mirrored, weights)


def open_test(source: str | Path, classes: Sequence[str], *, progress: Progress = silent) -> DataSet:
    """Open labelled images to score a finished model on: the given test split, else the given val, else all.

    Args:
        source: As in `open_data`.
        classes: The classes of the model, in its order; labels become positions in it.
        progress: Hears how far the look at the images is.

    Returns:
        A data set with the one split "test".

    Raises:
        DataError: nothing that opens, no images, more than 5 % damaged ones, or a class that the model lacks.
    """
    found = _read(source)
    given = next(name for name in ("test", "val", "train") if name in found.splits)
    parts, present, notes = _check(source, Found({given: found.splits[given]}, found.notes), progress)
    strange = [name for name in present if name not in classes]
    if strange:
        raise DataError(
            f"the model does not know class {_named(strange)} of {source}. Its classes are {_named(classes)}: "
            "rename what is the same, leave out what is not."
        )
    positions = np.array([classes.index(name) for name in present], dtype=np.int64)
    if len(found.splits) > 1:
        notes.append(f"Only the split {given} is scored.")
    part = parts[given]
    splits = {"test": Split(part.images, positions[part.labels])}
    return DataSet(str(source), tuple(classes), splits, _typical(part.sides), tuple(notes), found.mirrored)


def _read(source: str | Path) -> Found:
    text = str(source.absolute()) if isinstance(source, Path) else os.path.expanduser(source)
    try:
        for format in FORMATS:
            if format.opens(text):
                return format.read(text)
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error}). Check that all of it is yours to read.") from error
    exists = "is of no known format" if Path(text).exists() else "does not exist"
    raise DataError(f"{source} {exists}. What opens: {'; '.join(format.summary for format in FORMATS)}.")


def _check(source: str | Path, found: Found, progress: Progress) -> tuple[dict[str, _Part], tuple[str, ...], list[str]]:
    """Look at every image; return the usable ones by split, all class names, and what there is to say."""
    classes = tuple(sorted({label for part in found.splits.values() for label in part.labels}))
    position = {name: index for index, name in enumerate(classes)}
    total = sum(len(part.images) for part in found.splits.values())
    if not total:
        raise DataError(f"no images in {source}.")
    in_memory = fits_in_memory(part.images for part in found.splits.values())
    parts: dict[str, _Part] = {}
    broken: list[str] = []
    done = 0

    def seen(count: int) -> None:
        nonlocal done
        done += count
        progress(Event("data", f"{done} of {total} images", done / total))

    for name, part in found.splits.items():
        checked = check(part.images, in_memory=in_memory, seen=seen)
        labels = np.array([position[part.labels[index]] for index in checked.kept], dtype=np.int64)
        if len(labels):
            parts[name] = _Part(checked.images, labels, checked.shorter_sides)
        broken += checked.broken
    if len(broken) > MOST_BROKEN * total:
        raise DataError(
            f"{len(broken)} of {total} images in {source} are damaged, more than {MOST_BROKEN:.0%}: {_named(broken)}. "
            "Replace or remove them."
        )
    notes = [*found.notes, *(f"There are no images in the split {name}." for name in found.splits if name not in parts)]
    if broken:
        notes.append(f"{len(broken)} of {total} images are damaged and left out: {_named(broken)}.")
    return parts, classes, notes


def _refuse_too_few(source: str | Path, parts: Mapping[str, _Part], classes: Sequence[str]) -> None:
    if "train" not in parts:
        raise DataError(f"{source} has no images to train on, only {' and '.join(parts)}. Add a train split.")
    if len(classes) < 2:
        raise DataError(f"{source} has only one class, {classes[0]!r}. Telling classes apart takes at least two.")
    labels = np.concatenate([part.labels for part in parts.values()])
    hashes = np.concatenate([part.images.hashes for part in parts.values()])
    counts = [len(np.unique(hashes[labels == index])) for index in range(len(classes))]
    rare = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < 2]
    if rare:
        raise DataError(
            f"too few different images of {_named(rare)} in {source}. Each class needs at least two, one to learn from "
            "and one to test with: add images or leave the class out."
        )


def _drop_doubles(source: str | Path, parts: dict[str, _Part]) -> list[str]:
    """Leave out of `parts` what a split nearer to the test holds too."""
    notes = []
    seen = np.zeros(0, dtype=np.uint64)
    for name in ("test", "val", "train"):
        if name not in parts:
            continue
        hashes = parts[name].images.hashes
        double = np.isin(hashes, seen)
        if double.all():
            raise DataError(f"every image of {name} in {source} is in another split too. Nothing is left of {name}.")
        if double.any():
            names = [parts[name].images.name(int(index)) for index in np.flatnonzero(double)]
            notes.append(
                f"{len(names)} images of {name} are in another split too and left out of {name}: {_named(names)}."
            )
            parts[name] = parts[name].select(~double)
        seen = np.concatenate([seen, hashes])
    return notes


def _complete_splits(source: str | Path, parts: dict[str, _Part], seed: int) -> list[str]:
    """Make the splits that are missing from `parts`."""
    notes = []
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
        notes.append("There is no test split: the given val is the test, and another val is drawn from train.")
    for name, share in (("test", TEST_SHARE), ("val", VAL_SHARE)):
        if name in parts:
            continue
        train = parts["train"]
        held_out = stratified(train.labels, train.images.hashes, share, seed)
        if not held_out.any():
            raise DataError(
                f"too few images in {source} to hold some out as {name}: {len(train)} are left to train on. "
                "Add images, at least three different ones to some class."
            )
        parts[name], parts["train"] = train.select(held_out), train.select(~held_out)
        notes.append(f"{name} is {len(parts[name])} of {len(train)} images, {share:.0%} of each class (seed {seed}).")
    return notes


def _missing_classes(parts: Mapping[str, _Part], classes: Sequence[str]) -> list[str]:
    notes = []
    for name, part in parts.items():
        missing = [label for index, label in enumerate(classes) if index not in part.labels]
        if missing:
            lesson = " and cannot be learned" if name == "train" else ""
            notes.append(f"Without images in {name}{lesson}: class {_named(missing)}.")
    return notes


def _imbalance(labels: np.ndarray, classes: Sequence[str]) -> str:
    counts = np.bincount(labels, minlength=len(classes))
    rarest, most = int(np.where(counts > 0, counts, counts.max()).argmin()), int(counts.argmax())
    return (
        f"Classes are far out of balance ({classes[most]} {counts[most]} images, {classes[rarest]} {counts[rarest]}): "
        "rare ones weigh more in training."
    )


def _sided(classes: Sequence[str]) -> bool:
    """True for characters, and for classes that differ by left and right."""
    swapped = {name.lower().replace("left", "right") for name in classes if "left" in name.lower()}
    return all(len(name) == 1 for name in classes) or not swapped.isdisjoint(name.lower() for name in classes)


def _typical(sides: np.ndarray) -> int:
    return round(float(np.median(sides)))


def _named(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
