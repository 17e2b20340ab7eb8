"""The shape of an As-ViT as its authors write it: `8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32`.

Four stages, each with the kernel of its entry, the window split, the expansion of its MLPs and its number of blocks;
then the heads of the last stage and the width of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from anyvit.errors import ModelError

MOST_CHANNELS = 1024
HEADS_STEP = 8  # the first stage has an eighth of the heads of the last


@dataclass(frozen=True, slots=True)
class StageShape:
    """A stage.

    Args:
        kernel: Of the convolution that embeds patches in front of the first stage, or of the merge in front of others.
        split: Windows along a side of the grid; 1 is global attention.
        expansion: Hidden units of an MLP over its channels.
        depth: Blocks.
    """

    kernel: int
    split: int
    expansion: int
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Topology:
    """Four stages, the heads of the last one, and the channels of the first one.

    Raises:
        ModelError: It describes no network; the message names the value.
    """

    stages: tuple[StageShape, StageShape, StageShape, StageShape]
    heads: int
    hidden: int = 32

    def __post_init__(self) -> None:
        numbers = [self.heads, self.hidden, *(n for s in self.stages for n in (s.split, s.expansion, s.depth))]
        if min(numbers) < 1:
            raise ModelError(f"topology {self.to_string()}: every number must be 1 or more")
        if self.heads % HEADS_STEP:
            raise ModelError(f"heads {self.heads} of the last stage must be a multiple of {HEADS_STEP}")
        for kernel, least in zip([stage.kernel for stage in self.stages], (4, 2, 2, 2), strict=True):
            if kernel < least:
                raise ModelError(f"a kernel of {kernel} skips pixels: {least} is the least there")
        for width, heads in zip(self.widths, self.heads_by_stage, strict=True):
            if width < heads:
                raise ModelError(f"{width} channels cannot be shared by {heads} heads: raise hidden {self.hidden}")

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Read the authors' string; the numbers of blocks and the width may be left out.

        Raises:
            ModelError: It is none.
        """
        fields = text.split("|")
        if len(fields) != 5:
            raise ModelError(f"topology {text!r} has {len(fields)} fields: four stages and the heads, parted by |")
        try:
            *stages, last = [[int(number) for number in field.split(",")] for field in fields]
        except ValueError:
            raise ModelError(f"topology {text!r} holds something that is no whole number") from None
        if not all(len(stage) in (3, 4) for stage in stages) or len(last) not in (1, 2):
            raise ModelError(
                f"topology {text!r}: a stage is kernel,split,expansion or kernel,split,expansion,blocks, "
                "the end is heads or heads,hidden"
            )
        first, second, third, fourth = (StageShape(*stage) for stage in stages)
        return cls((first, second, third, fourth), *last)

    def to_string(self) -> str:
        """In full; `parse` reads it."""
        stages = [f"{stage.kernel},{stage.split},{stage.expansion},{stage.depth}" for stage in self.stages]
        return "|".join([*stages, f"{self.heads},{self.hidden}"])

    def sized(self, depths: Sequence[int], hidden: int) -> Topology:
        """The same with so many blocks in each stage, and so many channels in the first."""
        first, second, third, fourth = (replace(s, depth=d) for s, d in zip(self.stages, depths, strict=True))
        return Topology((first, second, third, fourth), self.heads, hidden)

    @property
    def depths(self) -> tuple[int, ...]:
        return tuple(stage.depth for stage in self.stages)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(min(MOST_CHANNELS, self.hidden * 2**place) for place in range(4))

    @property
    def heads_by_stage(self) -> tuple[int, ...]:
        return tuple(self.heads // 2 ** (3 - place) for place in range(4))

    def grids(self, image_size: int, stride: int = 4) -> tuple[int, ...]:
        """Tokens a side of each stage.

        Raises:
            ModelError: A stage cannot be halved, or its window split does not divide its grid.
        """
        if image_size % (8 * stride):
            raise ModelError(
                f"image size {image_size} is not divisible by {8 * stride}: grids of {stride} pixels a token are not "
                "even three times. Take another size, or padded=True."
            )
        grids = tuple(image_size // stride // 2**place for place in range(4))
        for stage, grid in zip(self.stages, grids, strict=True):
            if grid % stage.split:
                raise ModelError(
                    f"window split {stage.split} does not divide grid {grid}, at image size {image_size}. "
                    "Take another split or size, or padded=True."
                )
        return grids
