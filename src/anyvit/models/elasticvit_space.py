"""Which networks live in one ElasticViT super-network: the architecture tuple, the space it is drawn from, its checks.

The tuple has the ten fields that the authors publish, one value a block; JSON makes lists of it, and `Arch.of` takes
them. In what is drawn the blocks of a stage are alike, so that an `Outline`, one value a stage, says it all.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from typing import Any, NamedTuple

from anyvit.errors import SettingError

_CHOICES = ("channels", "depths", "ratios", "sizes")
"""Of a stage."""


class Arch(NamedTuple):
    """One network. `heads` tells, and does not decide: there are channels // head_dim of them."""

    res: int  # pixels a side
    channels: tuple[int, ...]  # a stage, the stem first
    depths: tuple[int, ...]  # blocks of a stage
    conv_ratio: tuple[int, ...]  # a convolution block, those of the stem first
    kernel: tuple[int, ...]
    mlp_ratio: tuple[int, ...]  # an attention block
    heads: tuple[int, ...]
    window: tuple[int, ...]
    qk_scale: tuple[int, ...]
    v_scale: tuple[int, ...]

    @classmethod
    def of(cls, fields: Sequence[Any]) -> Arch:
        """The architecture of ten fields, lists or tuples.

        Raises:
            SettingError: Other than ten fields, or one that is no list.
        """
        if len(fields) != len(cls._fields):
            raise SettingError(f"an architecture has the fields {', '.join(cls._fields)}: got {len(fields)} fields")
        try:
            return cls(fields[0], *(tuple(field) for field in fields[1:]))
        except TypeError:
            raise SettingError(f"an architecture is a number and nine lists of numbers: got {list(fields)}") from None


class Outline(NamedTuple):
    """An architecture whose blocks of a stage are alike: one value a stage."""

    res: int
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    ratios: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """What a stage may be. Choices rise.

    Args:
        kind: "conv" or "attention".
        stride: Of its first block.
        squeeze: Whether its convolution blocks squeeze and excite; the entry of an attention stage always does.
        channels: Widths.
        depths: Numbers of blocks.
        ratios: Hidden channels over a block's input channels, or hidden units of an MLP over its channels. Where 1 is
            the only choice, the convolution blocks have no expansion.
        sizes: Kernel sizes of convolution blocks; widths of a value over that of a query in attention.
    """

    kind: str
    stride: int
    squeeze: bool
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    ratios: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def is_conv(self) -> bool:
        return self.kind == "conv"

    @property
    def expands(self) -> bool:
        return self.ratios != (1,)


@dataclass(frozen=True)
class Space:
    """All networks of one super-network.

    Args:
        resolutions: Pixels a side, even.
        stages: The stem first, then convolution stages, then attention stages.
        head_dim: Channels of a query; a width of an attention stage is a multiple of it.
        head_multiplier: Channels in the head over those of the last stage.
        head_width: What the classifier reads.

    Raises:
        SettingError: Choices that are missing, or that leave no option to a draw.
    """

    resolutions: tuple[int, ...]
    stages: tuple[Stage, ...]
    head_dim: int = 16
    head_multiplier: int = 6
    head_width: int = 1984

    def __post_init__(self) -> None:
        kinds = [stage.kind for stage in self.stages]
        if kinds != sorted(kinds, reverse=True) or {*kinds} != {"conv", "attention"}:
            raise SettingError(f"stages are of kind conv, then of kind attention: got {', '.join(kinds)}")
        if not self.resolutions or any(res % 2 for res in self.resolutions):
            raise SettingError(f"resolutions must be even numbers, at least one: got {list(self.resolutions)}")
        for place, stage in enumerate(self.stages):
            if empty := [name for name in _CHOICES if not getattr(stage, name)]:
                raise SettingError(f"stage {place} has nothing to choose from in {', '.join(empty)}")
            if not stage.is_conv and any(width % self.head_dim for width in stage.channels):
                raise SettingError(
                    f"channels {list(stage.channels)} of stage {place} must be multiples of head_dim {self.head_dim}"
                )
        for place, (before, stage) in enumerate(pairwise(self.stages), start=1):
            if stage.channels[-1] < before.channels[-1]:
                raise SettingError(
                    f"channels must not fall, and stage {place} has at most {stage.channels[-1]} where the stage "
                    f"before may have {before.channels[-1]}: no choice would be left"
                )

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Space:
        """The space of plain data, as `to_json` gives it.

        Raises:
            SettingError: A word that is missing or unknown.
        """
        try:
            lists = [{name: tuple(stage[name]) for name in _CHOICES} for stage in words["stages"]]
            stages = tuple(Stage(**{**stage, **own}) for stage, own in zip(words["stages"], lists, strict=True))
            return cls(**{**words, "resolutions": tuple(words["resolutions"]), "stages": stages})
        except (TypeError, KeyError) as error:
            raise SettingError(f"a space of networks has resolutions and stages: {error}") from None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def smallest(self) -> Arch:
        return self._at(0)

    @property
    def largest(self) -> Arch:
        return self._at(-1)

    def _at(self, place: int) -> Arch:
        lists = (tuple(getattr(stage, name)[place] for stage in self.stages) for name in _CHOICES)
        return self.expand(Outline(self.resolutions[place], *lists))

    def expand(self, outline: Outline) -> Arch:
        """The architecture whose blocks are alike within each stage."""

        def by_block(values: Sequence[int], kind: str) -> tuple[int, ...]:
            groups = zip(self.stages, outline.depths, values, strict=True)
            return tuple(value for stage, depth, value in groups if stage.kind == kind for _ in range(depth))

        heads = [width // self.head_dim for width in outline.channels]
        ones = by_block([1] * len(heads), "attention")
        return Arch(
            outline.res,
            tuple(outline.channels),
            tuple(outline.depths),
            by_block(outline.ratios, "conv"),
            by_block(outline.sizes, "conv"),
            by_block(outline.ratios, "attention"),
            by_block(heads, "attention"),
            ones,
            ones,
            by_block(outline.sizes, "attention"),
        )

    def blocks(self, arch: Arch) -> list[tuple[tuple[int, int], ...]]:
        """Ratio and size of each block, stage by stage."""
        conv, attention = zip(arch.conv_ratio, arch.kernel), zip(arch.mlp_ratio, arch.v_scale)  # noqa: B905
        stages = zip(self.stages, arch.depths, strict=True)
        return [tuple(islice(conv if stage.is_conv else attention, depth)) for stage, depth in stages]

    def outline(self, arch: Arch) -> Outline:
        """What the first block of each stage says."""
        ratios, sizes = zip(*(blocks[0] for blocks in self.blocks(arch)), strict=True)
        return Outline(arch.res, arch.channels, arch.depths, ratios, sizes)

    def draw(self, chance: random.Random) -> Arch:
        """A random one, each value uniform among its choices; widths among those that do not fall."""
        channels: list[int] = []
        for stage in self.stages:
            channels.append(chance.choice([width for width in stage.channels if width >= max(channels, default=0)]))
        others = (tuple(chance.choice(getattr(stage, name)) for stage in self.stages) for name in _CHOICES[1:])
        return self.expand(Outline(chance.choice(self.resolutions), tuple(channels), *others))

    def above(self, least: Arch) -> Space:
        """The space of the networks that are nowhere smaller than `least`.

        Raises:
            SettingError: There are none.
        """
        res, *lists = self.outline(least)
        stages = []
        for stage, *values in zip(self.stages, *lists, strict=True):
            kept = {
                name: tuple(choice for choice in getattr(stage, name) if choice >= value)
                for name, value in zip(_CHOICES, values, strict=True)
            }
            stages.append(replace(stage, **kept))
        resolutions = tuple(choice for choice in self.resolutions if choice >= res)
        return replace(self, resolutions=resolutions, stages=tuple(stages))

    def checked(self, fields: Sequence[Any]) -> Arch:
        """The architecture of these fields, which must lie in this space.

        Raises:
            SettingError: It does not; the message names the field.
        """
        arch = Arch.of(fields)
        _check_lengths(arch, self)
        if arch.res not in self.resolutions:
            raise SettingError(f"res {arch.res} is not one of {_words(self.resolutions)}")
        for place, (before, width) in enumerate(pairwise(arch.channels), start=1):
            if width < before:
                raise SettingError(f"channels must not fall: stage {place} has {width} after {before}")
        for name, values in (("window", arch.window), ("qk_scale", arch.qk_scale)):
            if other := [value for value in values if value != 1]:
                raise SettingError(f"{name} must be 1: got {other[0]}")
        for place, (stage, blocks) in enumerate(zip(self.stages, self.blocks(arch), strict=True)):
            ratios, sizes = zip(*blocks, strict=True) if blocks else ((), ())
            named = ("conv_ratio", "kernel") if stage.is_conv else ("mlp_ratio", "v_scale")
            given = ((arch.channels[place],), (arch.depths[place],), ratios, sizes)
            for name, choices, values in zip(("channels", "depths", *named), _CHOICES, given, strict=True):
                known = getattr(stage, choices)
                if other := [value for value in values if value not in known]:
                    raise SettingError(f"{name} {other[0]} of stage {place} is not one of {_words(known)}")
        return arch


def _check_lengths(arch: Arch, space: Space) -> None:
    stages = len(space.stages)
    if not all(isinstance(depth, int) for depth in arch.depths):
        raise SettingError(f"depths must be whole numbers: got {list(arch.depths)}")
    kinds = [stage.kind for stage in space.stages]
    conv, attention = (
        sum(depth for kind, depth in zip(kinds, arch.depths, strict=False) if kind == which)
        for which in ("conv", "attention")
    )
    expected = {"channels": stages, "depths": stages, "conv_ratio": conv, "kernel": conv}
    expected |= dict.fromkeys(("mlp_ratio", "heads", "window", "qk_scale", "v_scale"), attention)
    for name, count in expected.items():
        got = len(getattr(arch, name))
        if got != count:
            raise SettingError(f"expected {count} {name} entries, got {got}")


def _words(choices: Sequence[int]) -> str:
    return ", ".join(map(str, choices))


def _conv(stride: int, channels: range, depths: range, *, squeeze: bool) -> Stage:
    return Stage("conv", stride, squeeze, tuple(channels), tuple(depths), (3, 4, 5, 6), (3, 5))


def _attention(stride: int, channels: range, most: int) -> Stage:
    depths = tuple(range(1, most + 1))
    return Stage("attention", stride, True, tuple(channels), depths, (2, 3, 4, 5), (2, 3, 4))


PUBLISHED = Space(
    resolutions=(128, 160, 176, 192, 224, 256),
    stages=(
        Stage("conv", 1, False, (16, 24), (1, 2), (1,), (3, 5)),
        _conv(2, range(16, 33, 8), range(2, 6), squeeze=False),
        _conv(2, range(16, 49, 8), range(2, 7), squeeze=True),
        _attention(2, range(48, 97, 16), 5),
        _attention(1, range(80, 161, 16), 6),
        _attention(2, range(144, 289, 16), 6),
        _attention(2, range(160, 321, 16), 6),
    ),
)
"""The published space, 37 to 3191 million MACs by its authors' estimate."""


def _named(res: int, channels: Sequence[int], depths: str, ratios: str, sizes: str) -> Arch:
    digits = (tuple(map(int, text)) for text in (depths, ratios, sizes))
    return PUBLISHED.expand(Outline(res, tuple(channels), *digits))


NAMED: Mapping[str, Arch] = {
    "t1": _named(128, (16, 24, 32, 64, 96, 176, 272), "1231111", "1332234", "3332222"),
    "t2": _named(160, (16, 24, 40, 48, 96, 176, 256), "1231122", "1333432", "3332222"),
    "s1": _named(192, (16, 24, 40, 64, 96, 192, 272), "1332222", "1332234", "3332222"),
    "s2": _named(224, (16, 24, 48, 64, 96, 192, 256), "1332222", "1332224", "3332222"),
    "m": _named(224, (16, 32, 48, 64, 96, 192, 288), "1352222", "1332445", "5332222"),
    "l1": _named(256, (16, 24, 40, 64, 96, 192, 320), "1332222", "1364344", "5552222"),
    "l1_5": _named(256, (16, 24, 48, 64, 96, 256, 320), "2442222", "1344535", "3352222"),
    "l2": _named(256, (16, 24, 40, 80, 128, 256, 304), "1342222", "1663235", "3332223"),
    "l3": _named(256, (16, 32, 48, 80, 128, 256, 320), "1342222", "1554435", "5352222"),
}
"""The networks that the paper names."""

MINIMUMS: Mapping[int, Arch] = {
    200: PUBLISHED.smallest,
    400: _named(176, (16, 24, 32, 48, 96, 176, 224), "1332222", "1332322", "3332222"),
    800: _named(224, (16, 24, 32, 64, 96, 192, 256), "1332222", "1332222", "3332222"),
}
"""The least network that is worth training up to so many million MACs."""
