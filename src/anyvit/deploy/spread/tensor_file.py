"""Tensors and a JSON document in one safetensors file: written whole or not at all, read with suspicion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from anyvit import __version__
from anyvit.deploy.document import refuse_newer
from anyvit.errors import AnyViTError, BundleError
from anyvit.files import write_file

KEY = "anyvit"
"""Under which the document stands in the metadata."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write both to `path`; the document gains the version that wrote it."""
    whole = json.dumps({"anyvit": __version__, **document})
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(path, safetensors.torch.save(contiguous, {KEY: whole}))


def read_tensors(content: bytes, path: Path, schema: int, remedy: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and the tensors, in memory of their own: the file may be replaced meanwhile.

    Args:
        content: Of the file,
        path: which errors name.
        schema: The newest that can be read.
        remedy: What helps where it is damaged.

    Raises:
        BundleError: It is damaged, not AnyViT's, or newer than `schema`.
    """
    with refuse_damaged(path, remedy):
        tensors = safetensors.torch.load(content)
        size = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + size]).get("__metadata__", {}).get(KEY)
    if text is None:
        raise BundleError(f"{path} was not written by AnyViT: it has no {KEY!r} in its metadata. {remedy}")
    with refuse_damaged(path, remedy):
        document = json.loads(text)
        found = int(document["schema"])
    refuse_newer(path, found, schema)
    return document, tensors


_ILL_FORMED = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    OverflowError,
    AnyViTError,
    safetensors.SafetensorError,
)


@contextmanager
def refuse_damaged(path: Path, remedy: str) -> Iterator[None]:
    """Values that are missing, ill-formed or do not go together are the fault of the file."""
    try:
        yield
    except _ILL_FORMED as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise BundleError(f"{path} is damaged ({words}). {remedy}") from error


def hash_of(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the document and each tensor with its name, type and shape."""
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
