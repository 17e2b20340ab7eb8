"""The message between hub and board: a header of fixed size, then the bytes of one tensor. Nothing in it is executed.

    offset  size  what
         0     4  "AVIT"
         4     2  version of this layout
         6     1  kind: pictures, tokens, class tokens, features
         7     1  number of dimensions
         8     8  id of the request; an answer repeats that of its question
        16    32  hash of the part that is asked or answers
        48    16  shape, four numbers; those past the last dimension are 0
        64     4  CRC-32 of the payload
        68     4  CRC-32 of all above
        72        the payload: the tensor, row by row, little-endian

Kind and layout fix the element type: uint8 for pictures, float32 for all else.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from anyvit.deploy.spread.refusal import Refusal, Status

MAGIC = b"AVIT"
VERSION = 1

_FIELDS = struct.Struct("<4sHBBQ32s4II")
_CHECK = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CHECK.size
"""What each message has beside its payload."""


class Kind(IntEnum):
    """What a message holds."""

    IMAGES = 1  # uint8 (B, C, H, W), as cropped, not normalized
    TOKENS = 2  # float32 (B, g * T, D): the tokens of the g groups that the board holds
    CLASS_TOKENS = 3  # float32 (B, g, D)
    FEATURES = 4  # float32 (B, D): of its sub-models, one after the other


_LAYOUTS: dict[Kind, tuple[str, int]] = {
    Kind.IMAGES: ("|u1", 4),
    Kind.TOKENS: ("<f4", 3),
    Kind.CLASS_TOKENS: ("<f4", 3),
    Kind.FEATURES: ("<f4", 2),
}
_TYPES = {"|u1": torch.uint8, "<f4": torch.float32}


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """A question or an answer.

    Attributes:
        request: Id of the request, in 0..2^64-1.
        kind: What the tensor is.
        weights: Hash of the part that is asked or answers, 64 hexadecimal digits.
        tensor: Of the type and the number of dimensions that the kind has.
    """

    request: int
    kind: Kind
    weights: str
    tensor: Tensor

    def to_bytes(self) -> bytes:
        """Header and payload.

        Raises:
            Refusal: The tensor is not of this kind.
        """
        element, rank = _LAYOUTS[self.kind]
        shape = self.tensor.shape
        if self.tensor.dtype != _TYPES[element] or len(shape) != rank or 0 in shape:
            raise Refusal(Status.INVALID_ARGUMENT, f"{_described(self.tensor)} is no tensor of {self.kind.name}")
        payload = self.tensor.detach().cpu().contiguous().numpy().astype(element, copy=False).tobytes()
        padded = (*shape, *[0] * (4 - rank))
        fields = (MAGIC, VERSION, self.kind, rank, self.request, bytes.fromhex(self.weights), *padded, crc32(payload))
        header = _FIELDS.pack(*fields)
        return header + _CHECK.pack(crc32(header)) + payload

    @classmethod
    def from_bytes(cls, content: bytes) -> Message:
        """Read a message, and see that all about it is as it must be.

        Raises:
            Refusal: INVALID_ARGUMENT, it is no message, cut short or too long, of no known kind, or has numbers that
                are not finite; FAILED_PRECONDITION, it has another version; DATA_LOSS, a checksum does not fit.
        """
        header, check, payload = content[: _FIELDS.size], content[_FIELDS.size : HEADER_BYTES], content[HEADER_BYTES:]
        if len(content) < HEADER_BYTES or not content.startswith(MAGIC):
            raise Refusal(Status.INVALID_ARGUMENT, f"{len(content)} bytes that are no message of AnyViT")
        _, version, kind, rank, request, weights, *shape, checksum = _FIELDS.unpack(header)
        if version != VERSION:
            raise Refusal(Status.FAILED_PRECONDITION, f"message of version {version}, not {VERSION}: update AnyViT")
        if _CHECK.unpack(check)[0] != crc32(header):
            raise Refusal(Status.DATA_LOSS, "the header was changed on its way: its checksum does not fit")
        element = _see_layout(kind, rank, shape, len(payload))
        if checksum != crc32(payload):
            raise Refusal(Status.DATA_LOSS, "the tensor was changed on its way: its checksum does not fit")
        numbers = np.frombuffer(payload, element).astype(element.lstrip("<|"))  # a copy: PyTorch wants to own it
        if not np.isfinite(numbers).all():
            raise Refusal(Status.INVALID_ARGUMENT, "the tensor has numbers that are not finite")
        return cls(request, Kind(kind), weights.hex(), torch.from_numpy(numbers).reshape(shape[:rank]))


def message_bytes(kind: Kind, *shape: int) -> int:
    """The size of a whole message with a tensor of that shape."""
    return HEADER_BYTES + math.prod(shape) * int(_LAYOUTS[kind][0][-1])


def _see_layout(kind: int, rank: int, shape: list[int], payload: int) -> str:
    """The element type of a payload whose header and length agree."""
    if kind not in _LAYOUTS:
        raise Refusal(Status.INVALID_ARGUMENT, f"a message of unknown kind {kind}")
    element, expected = _LAYOUTS[Kind(kind)]
    if rank != expected or 0 in shape[:rank] or any(shape[rank:]):
        raise Refusal(Status.INVALID_ARGUMENT, f"shape {shape} of {rank} dimensions is none of {Kind(kind).name}")
    wanted = message_bytes(Kind(kind), *shape[:rank]) - HEADER_BYTES
    if payload != wanted:
        raise Refusal(Status.INVALID_ARGUMENT, f"a tensor of shape {shape[:rank]} has {wanted} bytes, not {payload}")
    return element


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
