"""`bundle.json` as text: read with care, written so that any reader of JSON takes it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyvit.errors import BundleError

SCHEMA = 1
"""The version of `bundle.json` that this AnyViT writes, and the newest that it reads."""

DOCUMENT = "bundle.json"
REMEDY = "Copy the whole folder again, or repeat the run."

_REQUIRED = (
    "classes",
    "preprocessing",
    "model",
    "weights",
    "data",
    "device",
    "conditions",
    "candidates",
    "chosen",
    "artefacts",
)


def read_document(folder: Path) -> dict[str, Any]:
    """The content of `bundle.json` in `folder`.

    Raises:
        BundleError: The folder is no bundle, the file is damaged, or a newer AnyViT wrote it.
    """
    path = folder / DOCUMENT
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise BundleError(f"{folder} {problem}: name the folder that `anyvit fit` has written.")
    if not path.is_file():
        raise BundleError(
            f"{folder} is no bundle: it has no {DOCUMENT}. Name the folder that `anyvit fit` has written."
        )
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise BundleError(f"{path} is damaged ({error}). {REMEDY}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, int) or schema < 1:
        raise BundleError(f"{path} is damaged: it names no schema. {REMEDY}")
    refuse_newer(path, schema, SCHEMA)
    missing = [key for key in _REQUIRED if key not in document]
    if missing:
        raise BundleError(f"{path} is damaged: it lacks {', '.join(missing)}. {REMEDY}")
    return document


def refuse_newer(path: Path, schema: int, newest: int) -> None:
    """Refuse a file of a schema that is newer than the newest one that is read.

    Raises:
        BundleError: It is.
    """
    if schema > newest:
        raise BundleError(
            f"{path} has schema {schema}, newer than this AnyViT reads ({newest}): update with pip install -U anyvit."
        )


def read_listed(path: Path, digest: str, document: str, remedy: str) -> bytes:
    """A file as it was written, by the SHA-256 that the document of its folder gives.

    Args:
        path: The file.
        digest: Its SHA-256, hexadecimal.
        document: The name of the document, for the message.
        remedy: What helps where the file is damaged.

    Raises:
        BundleError: It is missing or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}). {remedy}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise BundleError(f"{path} is damaged: its SHA-256 is not the one that {document} gives. {remedy}")
    return content


def to_text(document: Mapping[str, Any]) -> str:
    """`document` as JSON; numbers that are none, such as the loss of a training that diverged, become null."""
    return json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
