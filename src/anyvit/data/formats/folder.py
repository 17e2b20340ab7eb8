"""A folder per class, with or without folders for train, val and test above them."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path

from anyvit.data.decode import SUFFIXES
from anyvit.data.formats.format import SPLIT_OF_WORD, Found, Labelled
from anyvit.data.images import FileImages
from anyvit.errors import DataError


class ClassFolders:
    """`photos/cat/1.jpg`, or `photos/train/cat/1.jpg` beside `photos/test/cat/2.jpg`."""

    name = "folder"
    summary = "a folder per class, with or without train/, val/ and test/ above them"

    def opens(self, source: str) -> bool:
        return Path(source).is_dir()

    def read(self, source: str) -> Found:
        root = Path(source)
        splits, notes = _split_folders(root)
        skipped: Counter[str] = Counter()
        found = {}
        for split, folders in splits.items():
            paths, labels = [], []
            for class_folder in sorted((inner for folder in folders for inner in _subfolders(folder)), key=_name):
                inside = _image_files(class_folder, skipped)
                paths += inside
                labels += [class_folder.name] * len(inside)
            found[split] = Labelled(FileImages(paths, root), labels)
        _complain(root, splits, found)
        if skipped:
            kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in skipped.most_common(3))
            notes.append(f"{skipped.total()} files are left out, for they are not images of a known kind ({kinds}).")
        return Found(found, tuple(notes))


def _split_folders(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The folders of each split, or `root` itself as train. A class too may be called "train" or "test"."""
    splits: dict[str, list[Path]] = defaultdict(list)
    others = []
    for folder in _subfolders(root):
        split = SPLIT_OF_WORD.get(folder.name.lower())
        if split and _subfolders(folder) and not _has_images(folder):
            splits[split].append(folder)
        else:
            others.append(folder.name)
    only_splits = all(name.lower() in SPLIT_OF_WORD for name in others)
    if not splits or not (only_splits or ("train" in splits and len(splits) > 1)):
        return {"train": [root]}, []
    return splits, [f"Left out, for there are no classes in it or it is no split: {name}." for name in others]


def _complain(root: Path, splits: dict[str, list[Path]], found: dict[str, Labelled]) -> None:
    class_folders = [inner for folders in splits.values() for folder in folders for inner in _subfolders(folder)]
    known = {label for part in found.values() for label in part.labels}
    if not class_folders:
        loose = "There are images, but not in a folder of their class" if _has_images(root) else "It holds no images"
        raise DataError(f"{root} has no folder per class. {loose}: put them as {root}/CLASS/IMAGE.jpg.")
    if not known:
        raise DataError(
            f"no images in {root}: "
            f"none of its {len(class_folders)} folders holds a file of a known kind ({', '.join(sorted(SUFFIXES))})."
        )
    empty = sorted({folder.name for folder in class_folders} - known)
    if empty:
        raise DataError(
            f"no images of class {empty[0]!r} in {root} ({len(empty)} such folders). "
            "Add at least two images or remove the folder."
        )


def _subfolders(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name)), key=_name)


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES and path.is_file() for path in folder.iterdir())


def _image_files(folder: Path, skipped: Counter[str]) -> list[Path]:
    """All images below `folder`, sorted by their path; files of other kinds are counted by suffix in `skipped`."""
    paths = []
    for parent, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(name)]
        for path in (Path(parent, name) for name in files if not _hidden(name)):
            if path.suffix.lower() in SUFFIXES:
                paths.append(path)
            else:
                skipped[path.suffix.lower()] += 1
    return sorted(paths, key=Path.as_posix)


def _raise(error: OSError) -> None:
    raise error


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _name(path: Path) -> str:
    return path.name
