"""Messages: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import struct
from zlib import crc32

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyvit.deploy.spread.refusal import Refusal, Status
from anyvit.deploy.spread.wire import HEADER_BYTES, Kind, Message, message_bytes

HASH = "0123456789abcdef" * 4
RANKS = {Kind.IMAGES: 4, Kind.TOKENS: 3, Kind.CLASS_TOKENS: 3, Kind.FEATURES: 2}


@st.composite
def messages(draw):
    kind = draw(st.sampled_from(Kind))
    shape = draw(st.lists(st.integers(1, 4), min_size=RANKS[kind], max_size=RANKS[kind]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if kind is Kind.IMAGES:
        tensor = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    else:
        tensor = torch.randn(shape, generator=generator)
    return Message(draw(st.integers(0, 2**64 - 1)), kind, HASH, tensor)


def status_of(content):
    with pytest.raises(Refusal) as refused:
        Message.from_bytes(content)
    return refused.value.status


def resealed(content, offset, fmt, *values):
    """A message with other fields, whose header has a right checksum again."""
    changed = bytearray(content)
    struct.pack_into(fmt, changed, offset, *values)
    struct.pack_into("<I", changed, HEADER_BYTES - 4, crc32(bytes(changed[: HEADER_BYTES - 4])))
    return bytes(changed)


@given(messages())
def test_what_goes_in_comes_out(message):
    content = message.to_bytes()
    again = Message.from_bytes(content)
    assert (again.request, again.kind, again.weights) == (message.request, message.kind, message.weights)
    torch.testing.assert_close(again.tensor, message.tensor, rtol=0, atol=0)
    tensor = message.tensor
    assert len(content) - HEADER_BYTES == tensor.numel() * tensor.element_size()
    assert len(content) == message_bytes(message.kind, *tensor.shape)


def test_payload_is_the_tensor_little_endian():
    tensor = torch.tensor([[1.0, -2.5]])
    assert Message(1, Kind.FEATURES, HASH, tensor).to_bytes()[HEADER_BYTES:] == struct.pack("<2f", 1.0, -2.5)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(content):
    assert status_of(content) is Status.INVALID_ARGUMENT


@given(messages(), st.data())
def test_any_flipped_bit_is_noticed(message, data):
    content = bytearray(message.to_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    assert status_of(bytes(content)) in {Status.DATA_LOSS, Status.INVALID_ARGUMENT, Status.FAILED_PRECONDITION}


@given(messages(), st.data())
def test_cut_short_or_too_long(message, data):
    content = message.to_bytes()
    assert status_of(content[: data.draw(st.integers(0, len(content) - 1))]) is Status.INVALID_ARGUMENT
    assert status_of(content + b"x") is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("offset", "fmt", "values", "words"),
    [
        (6, "<B", (9,), "unknown kind 9"),
        (7, "<B", (4,), "of 4 dimensions is none of FEATURES"),
        (48, "<4I", (0, 2, 0, 0), r"shape \[0, 2, 0, 0\]"),
        (48, "<4I", (1, 2, 7, 0), r"shape \[1, 2, 7, 0\]"),
        (48, "<4I", (2**32 - 1, 2**32 - 1, 0, 0), "has 73786976260478468100 bytes, not 8"),
    ],
)
def test_fields_that_contradict_the_payload_are_refused(offset, fmt, values, words):
    content = Message(1, Kind.FEATURES, HASH, torch.ones(1, 2)).to_bytes()
    with pytest.raises(Refusal, match=words):
        Message.from_bytes(resealed(content, offset, fmt, *values))


def test_another_version_is_told_from_damage():
    content = Message(1, Kind.FEATURES, HASH, torch.ones(1, 2)).to_bytes()
    assert status_of(resealed(content, 4, "<H", 2)) is Status.FAILED_PRECONDITION


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(value):
    content = Message(1, Kind.FEATURES, HASH, torch.tensor([[1.0, value]])).to_bytes()
    assert status_of(content) is Status.INVALID_ARGUMENT


@pytest.mark.parametrize("tensor", [torch.ones(2, 2, dtype=torch.float64), torch.ones(2), torch.ones(0, 2)])
def test_only_tensors_of_the_kind_are_sent(tensor):
    with pytest.raises(Refusal, match="is no tensor of FEATURES"):
        Message(1, Kind.FEATURES, HASH, tensor).to_bytes()
