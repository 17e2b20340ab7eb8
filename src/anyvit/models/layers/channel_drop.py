"""Which channels of a super-network are on, example by example: several architectures in one batch (ViT-ResNAS).

Early in training only the widest are drawn, and narrower ones are added one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from anyvit.errors import ModelError, SettingError


class ChannelDrop:
    """Draws widths; each example keeps the first so many of the channels.

    Args:
        widths: To draw from; one that is listed twice comes twice as often.
        channels: C, which the widest must have.
        examples_per_arch: E. With B examples, B / E are drawn for, and the draws serve the examples in turn, E times.
        single_arch: The whole batch gets one width.

    Raises:
        ModelError: The widest has not C channels.
    """

    def __init__(
        self, widths: Sequence[int], channels: int, *, examples_per_arch: int = 1, single_arch: bool = False
    ) -> None:
        if not widths or max(widths) != channels or min(widths) < 0 or examples_per_arch < 1:
            raise ModelError(
                f"widths {list(widths)} must be from 0 to the {channels} channels there are, all {channels} among "
                f"them, and examples_per_arch 1 or more: got {examples_per_arch}"
            )
        self.widths = tuple(sorted(widths, reverse=True))
        self.channels = channels
        self.examples_per_arch = examples_per_arch
        self.single_arch = single_arch
        self.usable = 1

    def set_epoch(self, epoch: int, warmup_epochs: int) -> None:
        """From epoch 0, which has the widest alone, to `warmup_epochs`, which has all."""
        grown = math.floor(epoch * (len(self.widths) - 1) / warmup_epochs) if warmup_epochs else len(self.widths)
        self.usable = min(1 + grown, len(self.widths))

    def table(self, batch: int) -> Tensor:
        """The widths (rows,) int64 that a batch of B examples is dealt from.

        Raises:
            SettingError: B is no multiple of E, or smaller than the number of widths.
        """
        if batch % self.examples_per_arch:
            raise SettingError(
                f"batch size {batch} not divisible by examples per architecture {self.examples_per_arch}: "
                "set another batch_size or examples_per_arch"
            )
        if batch < len(self.widths):
            raise SettingError(
                f"batch size {batch} is below the {len(self.widths)} widths {list(self.widths)}: set a larger one"
            )
        rounds = 1 if self.single_arch else math.ceil(batch // self.examples_per_arch / self.usable)
        return torch.tensor(self.widths[: self.usable]).repeat(rounds)

    def draw(self, batch: int) -> Tensor:
        """The width (B,) int64 of each example: one permutation from PyTorch's generator of the CPU."""
        table = self.table(batch)
        drawn = table[torch.randperm(len(table))]
        if self.single_arch:
            return drawn[:1].expand(batch)
        return drawn[: batch // self.examples_per_arch].repeat(self.examples_per_arch)


def prefix_mask(widths: Tensor, channels: int) -> Tensor:
    """Which channels are on, (B, 1, C) bool: of each example the first of its widths (B,)."""
    return torch.arange(channels, device=widths.device) < widths[:, None, None]
