"""Labelled images that a model was neither trained nor chosen on: those that may judge it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anyvit.data import DataSet, Split, open_test
from anyvit.data.images import Selection
from anyvit.deploy.bundle import Bundle
from anyvit.errors import DataError
from anyvit.protocols import Progress, silent


def open_unseen(bundle: Bundle, data: str | None = None, *, progress: Progress = silent) -> DataSet:
    """Open labelled images to judge the model of a bundle on, labels in the order of its classes.

    Args:
        bundle: A bundle; images whose content it was trained or chosen on are left out, which its notes say.
        data: What to open. None: what the bundle was trained on, of which its own test images are left.
        progress: Called with news.

    Returns:
        A data set with the one split "test".

    Raises:
        DataError: Nothing that opens, a class that the model does not know, or only images that it was trained on.
    """
    opened = open_test(data or bundle.document["data"]["source"], bundle.classes, progress=progress)
    split, seen = opened.splits["test"], bundle.training_images()
    hashes = np.array([split.images.content_hash(index) for index in range(len(split))], dtype=np.uint64)
    unseen = np.flatnonzero([int(value) not in seen for value in hashes])
    notes = list(opened.notes)
    if not len(unseen):
        raise DataError(
            f"the model was trained or chosen on every one of the {len(split)} images of {opened.source}, so they "
            "cannot judge it."
        )
    if len(unseen) < len(split):
        notes.append(
            f"{len(split) - len(unseen)} of {len(split)} images are left out: the model was trained or chosen on them."
        )
    test = Split(Selection(split.images, unseen, hashes[unseen]), split.labels[unseen])
    whole = replace(opened, splits={"test": test})
    if data is None and whole.digest("test") != bundle.document["data"]["digests"]["test"]:
        notes.append(f"{opened.source} has changed since the run: these are not the test images of then.")
    missing = [name for index, name in enumerate(bundle.classes) if index not in test.labels]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        notes.append(f"Without images here: class {', '.join(missing[:5])}{more}.")
    return replace(whole, notes=tuple(notes))
