"""What an ElasticViT architecture costs in multiply-accumulates: its authors' estimate, and the true count beside it.

The published figures and bands are in the estimate. It counts the depthwise convolution of the values once instead of
nine times, forgets the squeeze-and-excite and the shortcut where an attention stage is entered, counts a shortcut in a
convolution stage where the map is halved, needed or not, and nowhere else; and it counts the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

from anyvit.models.elasticvit_space import PUBLISHED, Arch, Space, Stage

REDUCTION_RATIO, REDUCTION_KERNEL = 6, 3
"""Of the convolution block that enters an attention stage."""


def macs(
    arch: Arch, space: Space = PUBLISHED, num_classes: int = 1000, *, in_chans: int = 3, strict_reference: bool = False
) -> int:
    """Multiply-accumulates of one image, matrix products and convolutions.

    Args:
        arch: Of `space`; it is not checked.
        space: The super-network's.
        num_classes: Of the classifier.
        in_chans: Channels of an image.
        strict_reference: The authors' estimate instead.
    """
    side, width = arch.res // 2, arch.channels[0]
    total = in_chans * width * side**2 * 9
    for stage, channels, blocks in zip(space.stages, arch.channels, space.blocks(arch), strict=True):
        before, side = side, _side_after(side, stage, strict_reference=strict_reference)
        if strict_reference and stage.stride == 2:
            before = 2 * side
        if stage.is_conv:
            total += _conv_stage(stage, width, channels, blocks, (before, side), strict_reference=strict_reference)
        else:
            total += _reduction(width, channels, (before, side), strict_reference=strict_reference)
            for ratio, v_scale in blocks:
                total += _attention(channels, side**2, space.head_dim, v_scale, strict_reference=strict_reference)
                total += 2 * side**2 * channels * int(ratio * channels)
        width = channels
    hidden = space.head_multiplier * width
    return total + width * hidden * side**2 + hidden * space.head_width + space.head_width * num_classes


def _side_after(side: int, stage: Stage, *, strict_reference: bool) -> int:
    if stage.stride == 1:
        return side
    return side // 2 if strict_reference and stage.is_conv else (side + 1) // 2


def _conv_stage(
    stage: Stage,
    width: int,
    channels: int,
    blocks: Sequence[tuple[int, int]],
    sides: tuple[int, int],
    *,
    strict_reference: bool,
) -> int:
    total = 0
    for place, (ratio, kernel) in enumerate(blocks):
        if strict_reference and not stage.expands:
            kernel = blocks[0][1]  # as in the first block of the stem
        halves = place == 0 and stage.stride == 2
        total += _conv_block(
            (width, width * ratio, channels), kernel, sides if place == 0 else (sides[1], sides[1]),
            expand=stage.expands, squeeze=stage.squeeze, shortcut=halves if strict_reference else width != channels,
        )  # fmt: skip
        width = channels
    return total


def _reduction(width: int, channels: int, sides: tuple[int, int], *, strict_reference: bool) -> int:
    forgotten = not strict_reference
    return _conv_block(
        (width, width * REDUCTION_RATIO, channels), REDUCTION_KERNEL, sides,
        expand=True, squeeze=forgotten, shortcut=forgotten and width != channels,
    )  # fmt: skip


def _conv_block(
    widths: tuple[int, int, int], kernel: int, sides: tuple[int, int], *, expand: bool, squeeze: bool, shortcut: bool
) -> int:
    inputs, hidden, outputs = widths
    before, pixels = sides[0] ** 2, sides[1] ** 2
    total = inputs * hidden * before * expand + hidden * kernel**2 * pixels + hidden * outputs * pixels
    return total + 2 * hidden * (hidden // 4) * squeeze + inputs * outputs * pixels * shortcut


def _attention(channels: int, tokens: int, head_dim: int, v_scale: int, *, strict_reference: bool) -> int:
    heads, values = channels // head_dim, channels * v_scale
    scores = heads * tokens**2 * (head_dim + strict_reference)
    linear = channels * tokens * (2 * heads * head_dim + values) + tokens * values * channels
    return scores + values * tokens**2 + linear + tokens * values * (1 if strict_reference else 9)
