"""Files and folders that are there whole or not at all: written beside their target, synced, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from anyvit.errors import AnyViTError

PARTIAL = ".partial-"
"""How the name of everything unfinished begins."""


@contextmanager
def whole_file(path: Path, *, previous: Path | None = None) -> Iterator[IO[bytes]]:
    """Write `path` in the body of a `with`, whole or not at all; what stood there becomes `previous`, if one is named.

    A crash leaves at most a file that `remove_partial` finds.
    """
    partial = path.with_name(PARTIAL + path.name)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all.

    Raises:
        AnyViTError: The disk is full, or not to be written to.
    """
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise AnyViTError(f"{path} cannot be written ({error.strerror}). What was there before is whole.") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write_file(path, text.encode())


def put_in_place(partial: Path, target: Path) -> None:
    """Rename a finished file or folder to `target`, in the place of what stood there."""
    for file in [partial] if partial.is_file() else [path for path in partial.rglob("*") if path.is_file()]:
        _sync(file)
    if target.is_dir():  # a folder cannot be renamed over one that holds something
        previous = target.with_name(f"{PARTIAL}previous-{target.name}")
        shutil.rmtree(previous, ignore_errors=True)
        target.replace(previous)
        partial.replace(target)
        shutil.rmtree(previous)
    else:
        partial.replace(target)
    sync_folder(target.parent)


def remove_partial(folder: Path) -> None:
    """Remove what a crash left unfinished directly in `folder`."""
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` last; where the system cannot sync folders (Windows), it needs not."""
    if os.name == "posix":
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
