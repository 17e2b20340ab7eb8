"""ViT-ResNAS's published networks, and the widths among which a super-network is searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from anyvit.errors import ModelError
from anyvit.models.vit_resnas_layout import NetworkDef


def stages(*stages: tuple[int, int, Sequence[tuple[int, int]]]) -> NetworkDef:
    """A network of stages of (width, head_dim, (heads, hidden) of each block), for 1000 classes."""
    entries: list[tuple[Any, ...]] = []
    for place, (width, head_dim, blocks) in enumerate(stages):
        entries.append((3, stages[place - 1][0], width) if place else (4, width))
        entries += [(1, (width, heads, head_dim), (width, hidden), 1) for heads, hidden in blocks]
    return (*entries, (2, stages[-1][0], 1000))


PUBLISHED: Mapping[str, NetworkDef] = {
    "reference_tiny": stages((192, 64, [(3, 768)] * 4), (384, 64, [(6, 1536)] * 4), (768, 64, [(12, 3072)] * 4)),
    "tiny": stages(
        (176, 32, [(3, 704), (3, 576), (3, 640), (4, 576), (4, 704)]),
        (352, 48, [(10, 1408), (8, 1408), (8, 1280), (8, 1408), (10, 1280), (10, 1024)]),
        (704, 64, [(10, 2560), (10, 1792), (10, 2816), (8, 2816), (8, 2560)]),
    ),
    "small": stages(
        (220, 32, [(5, 880), (5, 880), (7, 800), (5, 720), (5, 720), (5, 720)]),
        (440, 48, [(10, 1760), (10, 1440), (10, 1920), (10, 1600), (12, 1600), (12, 1440)]),
        (880, 64, [(16, 3200), (12, 3200), (16, 2880), (12, 2240), (14, 2560)]),
    ),
    "medium": stages(
        (240, 32, [(7, 960), (6, 960), (7, 800), (8, 960), (7, 880), (8, 880), (6, 800)]),
        (640, 48, [(10, 1120), (14, 1760), (14, 1920), (16, 1760), (14, 1440), (16, 1760), (16, 1920)]),
        (880, 64, [(16, 3200), (10, 3840), (16, 3840), (12, 3200), (16, 3520), (14, 3520)]),
    ),
    "super_tiny": stages((256, 32, [(6, 768)] * 6), (512, 48, [(12, 1536)] * 6), (1024, 64, [(12, 3072)] * 6)),
    "super_small": stages((320, 32, [(8, 960)] * 7), (640, 48, [(16, 1920)] * 7), (1280, 64, [(16, 3840)] * 7)),
}
"""By name: what was made by hand, what the searches found, and the super-networks they searched."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What may become of an entry, the widest first; one that is listed twice is drawn twice as often.

    Attributes:
        width: Channels of an embedding, or those that a reduction gives.
        attn: Channels of all heads of a block together.
        mlp: Hidden units of a block.
        layer: Channels of a block's output: all, or 0 where it is absent. Empty: it is never absent.
    """

    width: tuple[int, ...] = ()
    attn: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()
    layer: tuple[int, ...] = ()


Space = tuple[Choices, ...]
"""One for each entry of a super-network."""


@dataclass(frozen=True, slots=True)
class Shares:
    """A space as shares of a super-network's sizes; every second block of a stage may be absent."""

    width: tuple[Fraction, ...] = tuple(Fraction(part, 16) for part in (16, 14, 12, 11, 10))
    heads: tuple[Fraction, ...] = tuple(Fraction(part, 6) for part in (6, 5, 4, 3))
    mlp: tuple[Fraction, ...] = tuple(Fraction(part, 12) for part in (12, 11, 10, 9, 8, 7, 6))


SHARES: Mapping[str, Shares] = {
    "tiny": Shares(),
    "small": Shares(heads=tuple(Fraction(part, 8) for part in (8, 7, 6, 5))),
}
"""Of the published spaces; "small" is that of the medium network too."""


def space_of(network_def: NetworkDef, shares: Shares = SHARES["tiny"]) -> Space:
    """The space of a super-network: shares of its sizes, rounded, those that come out alike once."""
    found, place = [], 0  # of a block in its stage
    for entry in network_def:
        place = place + 1 if entry[0] == 1 else 0
        match entry:
            case (0 | 4 | 5, width, *_) | (3, _, width):
                found.append(Choices(width=_parts(width, shares.width)))
            case (1, (width, heads, head_dim), (_, hidden), _):
                attn = tuple(count * head_dim for count in _parts(heads, shares.heads))
                layer = () if place % 2 else (width, width, 0, 0)
                found.append(Choices(attn=attn, mlp=_parts(hidden, shares.mlp), layer=layer))
            case _:
                found.append(Choices())
    return tuple(found)


def _parts(size: int, shares: Sequence[Fraction]) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(size * share)) for share in shares}, reverse=True))


def read_space(value: Sequence[Any], network_def: NetworkDef) -> Space:
    """A space as the reference writes it: by entry a list of widths, `{"attn": …, "mlp": …, "layer": …}`, or None.

    Raises:
        ModelError: It is not one of this super-network; the message names the entry.
    """
    if len(value) != len(network_def):
        raise ModelError(f"a space has an entry for each of the {len(network_def)} of network_def: got {len(value)}")
    return tuple(_read(*both, index) for index, both in enumerate(zip(value, network_def, strict=True)))


def _read(value: Any, entry: tuple[Any, ...], index: int) -> Choices:
    if isinstance(value, Choices):
        choices = value
    elif isinstance(value, Mapping):
        choices = Choices(**{name: _falling(widths or ()) for name, widths in value.items()})
    else:
        choices = Choices(width=_falling(value or ()))
    full = sizes(entry)
    for name in Choices.__slots__:
        if (widths := getattr(choices, name)) and widths[0] != full.get(name):
            raise ModelError(
                f"space[{index}] begins with {name} {widths[0]}, and network_def[{index}] {entry} has {full.get(name)}"
            )
    if entry[0] == 1 and any(width % entry[1][2] for width in choices.attn):
        raise ModelError(f"space[{index}]: attn {choices.attn} must be whole heads of {entry[1][2]} channels")
    return choices


def _falling(widths: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(widths, reverse=True))


def sizes(entry: tuple[Any, ...]) -> dict[str, int]:
    """How many channels an entry has, by the names of `Choices`."""
    match entry:
        case (0 | 4 | 5, width, *_) | (3, _, width):
            return {"width": width}
        case (1, (width, heads, head_dim), (_, hidden), exists):
            return {"attn": heads * head_dim, "mlp": hidden, "layer": width if exists else 0}
    return {}
