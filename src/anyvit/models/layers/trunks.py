"""Trunks that end in a map (B, K, h, w): convolution stages, a CNN of timm, or none at all.

Each takes which of the K channels are wanted, so that a device may compute its own share.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn


class ConvStage(nn.Module):
    """Two convolutions with BatchNorm and ReLU, then max pooling where `pool` is above 1.

    As in HSViT's reference, `kernel_size` is that of the first convolution and of the pooling; the second is 3 x 3.
    """

    def __init__(self, in_chans: int, width: int, out_chans: int, kernel_size: int, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, out_chans, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(kernel_size, pool, kernel_size // 2) if pool > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        return self.pool(self.act(self.bn2(self.conv2(x))))


def conv_stages(
    in_chans: int, kernels: Sequence[int], sizes: Sequence[int], pools: Sequence[int], *, last: int
) -> nn.Sequential:
    """Convolution stages of `kernels` channels; the very last convolution gives `last` of them."""
    widths = list(pairwise((in_chans, *kernels)))
    outputs = [*kernels[:-1], last]
    return nn.Sequential(
        *(
            ConvStage(before, width, out, size, pool)
            for (before, width), out, size, pool in zip(widths, outputs, sizes, pools, strict=False)
        )
    )


def map_size_of(image: tuple[int, int], sizes: Sequence[int], pools: Sequence[int]) -> tuple[int, int]:
    """Height and width of the map that `conv_stages` give of an image of such a size."""
    height, width = image
    for size, pool in zip(sizes, pools, strict=True):
        if pool > 1:
            height, width = ((length + 2 * (size // 2) - size) // pool + 1 for length in (height, width))
    return height, width


class CnnTrunk(nn.Module):
    """The wanted channels of the last map of a CNN of timm. Frozen, it stays in evaluation mode, come what may."""

    def __init__(
        self, name: str, in_chans: int, channels: Sequence[int] | None, *, pretrained: bool, frozen: bool
    ) -> None:
        super().__init__()
        self.cnn: Any = timm.create_model(name, pretrained=pretrained, in_chans=in_chans, num_classes=0, global_pool="")
        self.cnn.requires_grad_(not frozen)
        self.frozen = frozen
        self.channels = None if channels is None else list(channels)

    def train(self, mode: bool = True) -> CnnTrunk:
        super().train(mode)
        self.cnn.train(mode and not self.frozen)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.cnn.forward_features(x)
        return x if self.channels is None else x[:, self.channels]


def last_map_of(name: str, in_chans: int, image: tuple[int, int]) -> tuple[int, int, int]:
    """Channels, height and width of the last map of a CNN of timm.

    Raises:
        ValueError: Its features are no map.
    """
    with torch.device("meta"), torch.no_grad():
        cnn: Any = timm.create_model(name, in_chans=in_chans, num_classes=0, global_pool="").eval()
        shape = cnn.forward_features(torch.empty(1, in_chans, *image)).shape
    if len(shape) != 4 or getattr(cnn, "output_fmt", "NCHW") != "NCHW":
        raise ValueError(f"the features of {name} are {tuple(shape)}, not a map of channels")
    return shape[1], shape[2], shape[3]


class RepeatedChannels(nn.Module):
    """The wanted channels of the input itself, repeated in turn until each token has one: no convolution at all."""

    def __init__(self, in_chans: int, tokens: Sequence[int]) -> None:
        super().__init__()
        self.channels = [token % in_chans for token in tokens]

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.channels]
