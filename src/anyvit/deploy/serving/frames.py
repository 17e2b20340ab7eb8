"""What front and engine say to each other over pipes: a few words of JSON, then bytes. Nothing in it is executed.

offset  size  what
     0     4  bytes of the JSON, little-endian
     4     4  bytes of the payload
     8        the JSON, an object; then the payload
"""

from __future__ import annotations

import json
import struct
from asyncio import IncompleteReadError, StreamReader
from collections.abc import Mapping
from typing import Any, BinaryIO

_SIZES = struct.Struct("<II")

Frame = tuple[dict[str, Any], bytes]
"""The words and the payload."""


def pack(words: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """A frame as it goes through the pipe."""
    text = json.dumps(words).encode()
    return b"".join((_SIZES.pack(len(text), len(payload)), text, payload))


def read(stream: BinaryIO) -> Frame | None:
    """The next frame; None where the other side has ended."""
    head = stream.read(_SIZES.size)
    if len(head) < _SIZES.size:
        return None
    text, payload = (stream.read(size) for size in _SIZES.unpack(head))
    return json.loads(text), payload


async def receive(stream: StreamReader) -> Frame | None:
    """The same without blocking."""
    try:
        sizes = _SIZES.unpack(await stream.readexactly(_SIZES.size))
        text, payload = [await stream.readexactly(size) for size in sizes]
    except (IncompleteReadError, ConnectionError):
        return None
    return json.loads(text), payload
