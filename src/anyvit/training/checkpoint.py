"""The files that a run resumes from: there whole or not at all, and the checkpoint before the last is kept.

A file is written beside its target, synced and renamed, so neither a crash nor a full disk leaves half a file in the
place of a whole one, wherever the system keeps its temporary files.
"""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from anyvit.errors import AnyViTError, BundleError, SettingError
from anyvit.files import remove_partial, whole_file, write_text

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_SETTINGS = "training.json"


def write_checkpoint(folder: Path, checkpoint: Mapping[str, Any]) -> None:
    """Make `checkpoint` the last one in `folder`, and what was the last one the previous one.

    Raises:
        AnyViTError: The disk is full, or not to be written to. The last one is as it was.
    """
    with system_errors_named(folder), whole_file(folder / LAST, previous=folder / PREVIOUS) as file:
        torch.save(checkpoint, file)


def tensors_to_bytes(value: Any) -> bytes:
    """Tensors and plain values as the content of a PyTorch file, on its way to another process."""
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def load_tensors(path: Path | IO[bytes], *, allow: Sequence[type] = ()) -> Any:
    """What a PyTorch file holds, on the CPU: tensors and plain values. Other objects are not built, but for `allow`.

    The one place that calls `torch.load`. What it raises on a damaged file or a forbidden object is not specified.
    """
    with torch.serialization.safe_globals(list(allow)):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last whole checkpoint in `folder`, on the CPU, or None where there is none.

    Raises:
        BundleError: There are checkpoints, and all are damaged.
    """
    found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for file in found:
        try:
            return load_tensors(file)
        except Exception:  # what PyTorch raises on a damaged file is not specified
            continue
    if found:
        names = " and ".join(file.name for file in found)
        raise BundleError(f"{names} in {folder} cannot be read: remove the folder to train from the start.")
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove all that a training in `folder` would be resumed from."""
    remove_partial(folder)
    for name in (LAST, PREVIOUS, _SETTINGS):
        (folder / name).unlink(missing_ok=True)


def recall(folder: Path, settings: Mapping[str, Any], decide: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What was decided when the training in `folder` was started; decided and kept now where none was started.

    Raises:
        SettingError: It was started with other settings.
    """
    file = folder / _SETTINGS
    if not file.exists():
        record = {"decided": decide(), "settings": settings}
        with system_errors_named(folder):
            write_text(file, json.dumps(record, indent=2))
    record = json.loads(file.read_text(encoding="utf-8"))
    for name, value in json.loads(json.dumps(settings)).items():
        before = record["settings"].get(name)
        if before != value:
            raise SettingError(
                f"{folder} holds a training with {name} {before!r}, not {value!r}: "
                "repeat the same to resume it, or choose another folder."
            )
    return record["decided"]


@contextmanager
def system_errors_named(folder: Path) -> Iterator[None]:
    """Turn a disk that is full or not to be written to into an error that says so."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = _system_error(error)
        if reason is None or reason.errno not in _DISK_ERRORS:
            raise
        raise AnyViTError(
            f"{folder} cannot be written to: {reason.strerror}. The last checkpoint in it is whole: "
            "make room there, and the same command resumes."
        ) from error


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def _system_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):  # PyTorch may wrap it in one of its own
        error = error.__cause__ or error.__context__
    return error
