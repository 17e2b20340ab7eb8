"""ViT-ResNAS's networks as their authors write them: a tuple an entry. What they cost, and how weights are cut to one.

An entry is one of
    (0, C)  (4, C)  (5, C, mid)  embedding of 14 px patches: linear; by convolutions of 24 channels inside, or of mid
    (1, (C, heads, head_dim), (C, hidden), exists)  transformer block; with exists 0 a placeholder without weights
    (3, C_in, C_out)  spatial reduction by 2
    (2, C, num_classes)  head
An embedding comes first and the head last. Lists do as well, as JSON has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from anyvit.errors import ModelError

NetworkDef = tuple[tuple[Any, ...], ...]

PATCH = 14
MID = 24
"""Channels inside the convolutional embedding of type 4."""

_FORMS = {
    0: (0, int),
    4: (4, int),
    5: (5, int, int),
    1: (1, (int, int, int), (int, int), bool),
    3: (3, int, int),
    2: (2, int, None),
}
_WRITTEN = {
    0: "(0, C)",
    4: "(4, C)",
    5: "(5, C, mid)",
    1: "(1, (C, heads, head_dim), (C, hidden), exists)",
    3: "(3, C_in, C_out)",
    2: "(2, C, num_classes)",
}
_EMBEDDINGS = (0, 4, 5)


def read_network_def(value: Sequence[Any], *, img_size: int) -> NetworkDef:
    """A definition as nested tuples, checked.

    Args:
        value: Nested tuples or lists.
        img_size: Pixels a side.

    Raises:
        ModelError: It describes no network for such images; the message names the entry.
    """
    if img_size < PATCH or img_size % PATCH:
        raise ModelError(f"img_size {img_size} not divisible by the patch size, {PATCH}")
    entries = _tuples(value)
    if not isinstance(entries, tuple) or len(entries) < 2:
        raise ModelError(f"a network_def lists an embedding, blocks and reductions, and a head: got {value!r}")
    width, side = 0, img_size // PATCH
    for index, entry in enumerate(entries):
        last = index == len(entries) - 1
        if reason := _why_malformed(entry) or _why_misplaced(entry, first=index == 0, last=last):
            raise ModelError(f"network_def[{index}] {entry}: {reason}")
        if reason := _why_unfit(entry, width, side):
            raise ModelError(f"network_def[{index}] {entry}: {reason}")
        width = entry[1] if entry[0] in _EMBEDDINGS else entry[2] if entry[0] == 3 else width
        side = side // 2 if entry[0] == 3 else side
    return entries


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _why_malformed(entry: Any) -> str | None:
    if not isinstance(entry, tuple) or not entry:
        return "an entry is a tuple that begins with its type"
    if entry[0] not in _FORMS:
        return f"unknown block type {entry[0]!r}. Known: {', '.join(map(str, sorted(_FORMS)))}"
    return (
        None if _has_form(entry, _FORMS[entry[0]]) else f"it must have the form {_WRITTEN[entry[0]]}, of sizes above 0"
    )


def _has_form(value: Any, form: Any) -> bool:
    if isinstance(form, tuple):
        return isinstance(value, tuple) and len(value) == len(form) and all(map(_has_form, value, form))
    if form in (int, None):
        return type(value) is int and value >= (form is int)
    return value in (0, 1) if form is bool else value == form


def _why_misplaced(entry: tuple[Any, ...], *, first: bool, last: bool) -> str | None:
    if first != (entry[0] in _EMBEDDINGS):
        return "the first entry, and no other, is an embedding: type 0, 4 or 5"
    return "the last entry, and no other, is the head: type 2" if last != (entry[0] == 2) else None


def _why_unfit(entry: tuple[Any, ...], width: int, side: int) -> str | None:
    match entry:
        case (1, (attn, _, _), (mlp, _), _) if not attn == mlp == width:
            return f"attention takes {attn} channels and the MLP {mlp}, where {width} come"
        case (3 | 2, taken, _) if taken != width:
            return f"it takes {taken} channels, where {width} come"
        case (3, taken, given) if given < taken:
            return f"a reduction cannot give fewer channels than it takes: {given} of {taken}"
        case (3, _, _) if side % 2:
            return f"a grid of {side} x {side} patches not divisible by 2: choose another img_size"
    return None


def with_classes(network_def: NetworkDef, num_classes: int) -> NetworkDef:
    """The same network with a head for so many classes."""
    return (*network_def[:-1], (2, network_def[-1][1], num_classes))


def without_placeholders(network_def: NetworkDef) -> NetworkDef:
    """The same network without its absent blocks: for training it anew, since drop path counts them.

    The blocks after one get other numbers, so weights no longer fit by their names.
    """
    return tuple(entry for entry in network_def if entry[0] != 1 or entry[3])


def with_grids(network_def: NetworkDef, img_size: int) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Each entry and the patches a side after it."""
    side = img_size // PATCH
    for entry in network_def:
        side = side // 2 if entry[0] == 3 else side
        yield entry, side


def macs(
    network_def: NetworkDef, img_size: int = 224, *, num_prefix_tokens: int = 1, strict_reference: bool = False
) -> int:
    """Multiply-accumulates of one image, by the reference's estimate, which the search goes by.

    Args:
        network_def: Of the network.
        img_size: Pixels a side.
        num_prefix_tokens: 2 with a distillation token, which has a head of its own.
        strict_reference: Count the embedding's convolutions at 112 x 112 pixels whatever the image, as the reference
            does. The two counts are the same at 224.
    """
    total, prefix = 0, num_prefix_tokens
    for entry, side in with_grids(network_def, img_size):
        tokens = side**2 + prefix
        match entry:
            case (0, width):
                total += 3 * PATCH**2 * width * side**2
            case (4 | 5, width, *_):
                mid = mid_of(entry)
                total += _stem_pixels(img_size, strict_reference=strict_reference) * (27 * mid + 18 * mid * mid)
                total += (PATCH // 2) ** 2 * mid * width * side**2
            case (1, (width, heads, head_dim), (_, hidden), 1):
                inner = heads * head_dim
                total += 4 * tokens * width * inner + 2 * tokens**2 * inner + 2 * tokens * width * hidden
            case (3, taken, given):
                total += 9 * taken * given * side**2 + prefix * taken * given
            case (2, width, num_classes):
                total += width * num_classes * prefix
    return total


def flops(
    network_def: NetworkDef, img_size: int = 224, *, num_prefix_tokens: int = 1, strict_reference: bool = False
) -> int:
    """Floating-point operations of one image, as the reference counts them; its oddities are kept.

    Two for each multiply-accumulate; 5 an element of a norm or of softmax, 8 of GELU; biases, scales and sums. In a
    reduction the norm of the patches is counted after it, not before; a head's bias is counted at every token. The
    arguments are those of `macs`.
    """
    total, prefix = 0, num_prefix_tokens
    for entry, side in with_grids(network_def, img_size):
        tokens = side**2 + prefix
        match entry:
            case (0 | 4 | 5, width, *_):
                total += (2 * side**2 + prefix) * width
                if entry[0] != 0:
                    total += 3 * mid_of(entry) * _stem_pixels(img_size, strict_reference=strict_reference)
            case (1, (width, heads, head_dim), (_, hidden), 1):
                total += tokens * (3 * heads * head_dim + 14 * width + 9 * hidden + 6 * heads * tokens)
            case (3, taken, given):
                total += (7 * side**2 + prefix) * given + 6 * prefix * taken
            case (2, width, num_classes):
                total += prefix * (5 * width + tokens * num_classes)
    multiplied = macs(network_def, img_size, num_prefix_tokens=num_prefix_tokens, strict_reference=strict_reference)
    return 2 * multiplied + total


def mid_of(entry: tuple[Any, ...]) -> int:
    """Channels inside a convolutional embedding."""
    return entry[2] if entry[0] == 5 else MID


def _stem_pixels(img_size: int, *, strict_reference: bool) -> int:
    return 112**2 if strict_reference else (img_size // 2) ** 2


def check_inside(part: NetworkDef, whole: NetworkDef) -> None:
    """Whether the leading channels, heads and hidden units of one network make the other.

    Raises:
        ModelError: They do not; the message names the entry.
    """
    if len(part) != len(whole):
        raise ModelError(f"a subnetwork has an entry for each of the {len(whole)}, absent blocks too: got {len(part)}")
    for index, (smaller, larger) in enumerate(zip(part, whole, strict=True)):
        match smaller, larger:
            case (1, (_, heads, head_dim), (_, hidden), exists), (1, (_, most, size), (_, units), there):
                inside = heads <= most and head_dim == size and hidden <= units and exists <= there
            case (2, _, given), (2, _, classes):
                inside = given == classes
            case _:
                inside = smaller[0] == larger[0] and all(a <= b for a, b in zip(smaller, larger, strict=True))
        if not inside:
            raise ModelError(f"network_def[{index}] {smaller} is no part of the super-network's {larger}")


def cut(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors of a subnetwork, in memory of their own.

    Each is the leading part along every axis; of the rows for queries, keys and values, of each third.

    Args:
        state: Of the super-network.
        shapes: Of the subnetwork's tensors, by name.
    """
    found = {}
    for name, shape in shapes.items():
        tensor = state[name]
        if ".qkv." in name:
            tensor = tensor.unflatten(0, (3, -1))[:, : shape[0] // 3].flatten(0, 1)
        found[name] = tensor[tuple(slice(length) for length in shape)].clone()
    return found


def resized(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The same weights for images of another size: position tables by bicubic interpolation, tokens kept.

    Args:
        state: Weights by name.
        shapes: Of the tensors wanted, by name; those of position tables matter alone.
    """
    found = dict(state)
    for name, tensor in state.items():
        if re.search(r"(^|\.)pos_embed$", name) and name in shapes and tensor.shape[1] != shapes[name][1]:
            prefix = state["tokens"].shape[1] if name == "pos_embed" else 0
            side = round((shapes[name][1] - prefix) ** 0.5)
            found[name] = resample_abs_pos_embed(
                tensor, [side, side], num_prefix_tokens=prefix, interpolation="bicubic", antialias=False
            )
    return found
