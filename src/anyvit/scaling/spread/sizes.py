"""What a part of an HSViT needs, in closed form: planners price thousands of parts and build none.

Letters: K kernels, G groups, T = K / G tokens a group, D embed_dim; sizes in bytes, weights and payload as float32
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anyvit.costs.counts import count_params, weights_size
from anyvit.models.hsvit import HSViT
from anyvit.models.layers.trunks import CnnTrunk, last_map_of, map_size_of

FLOAT = 4
COUNTER = 8  # of batches, in every BatchNorm


@dataclass(frozen=True, slots=True)
class Size:
    """What a piece of a model needs.

    Attributes:
        params: Parameters, exact.
        macs: Multiply-accumulates of one image, exact.
        weights: Bytes of its state, buffers included, exact.
        activations: Bytes of the tensors that one image keeps alive at once at most, in PyTorch's eager mode. What a
            convolution may need besides (a few times its map) is not known beforehand and not in it.
    """

    params: int = 0
    macs: int = 0
    weights: int = 0
    activations: int = 0

    @property
    def memory(self) -> int:
        """Bytes of weights and activations."""
        return self.weights + self.activations

    def __add__(self, other: Size) -> Size:
        """Both, one after the other: their activations are not alive at once."""
        return Size(
            self.params + other.params,
            self.macs + other.macs,
            self.weights + other.weights,
            max(self.activations, other.activations),
        )


@dataclass(frozen=True, slots=True)
class HSViTShape:
    """The shape of an HSViT. Everything below follows from it."""

    img_size: tuple[int, int]
    in_chans: int
    num_classes: int
    kernels: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    pools: tuple[int, ...]
    num_groups: int
    embed_dim: int
    depth: int
    num_heads: int
    backbone: str | None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> HSViTShape:
        """The shape of `HSViT(**arguments)`; what is not given has the model's defaults."""
        defaults = {name: each.default for name, each in inspect.signature(HSViT).parameters.items()}
        told: dict[str, Any] = {name: {**defaults, **arguments}[name] for name in cls.__slots__}
        size, kernel_sizes = told["img_size"], told["kernel_sizes"]
        told["img_size"] = (size, size) if isinstance(size, int) else tuple(size)
        told["kernels"], told["pools"] = tuple(told["kernels"]), tuple(told["pools"])
        one_for_all = isinstance(kernel_sizes, int)
        told["kernel_sizes"] = (kernel_sizes,) * len(told["kernels"]) if one_for_all else tuple(kernel_sizes)
        return cls(**told)

    @property
    def raw(self) -> bool:
        """Whether raw channels are the tokens: no trunk, no projection."""
        return not self.backbone and 0 in self.kernel_sizes[-1:]

    @property
    def final_map(self) -> tuple[int, int, int]:
        """K, height and width of the map whose channels become tokens."""
        if self.backbone:
            return _last_map(self.backbone, self.in_chans, self.img_size)
        size = self.img_size if self.raw else map_size_of(self.img_size, self.kernel_sizes, self.pools)
        return ((self.in_chans, *self.kernels)[-1], *size)

    @property
    def tokens_per_group(self) -> int:
        """T."""
        return self.final_map[0] // max(1, self.num_groups)

    def trunk(self, groups: int) -> Size:
        """Convolutions and projection for the tokens of so many groups: the very last convolution gives no others."""
        own = groups * self.tokens_per_group if self.num_groups else self.final_map[0]
        if self.raw:
            return Size(activations=FLOAT * own * self.embed_dim)
        if self.backbone:
            return _cnn(self.backbone, self.in_chans, self.img_size) + self._projection(own)
        return self._stages(own) + self._projection(own)

    def attention(self, groups: int) -> Size:
        """So many groups: their blocks, class tokens and position tables."""
        D, T = self.embed_dim, self.tokens_per_group
        N = T + 1
        params = groups * (self.depth * (4 * D * D + 6 * D) + (T + 2) * D)
        macs = groups * self.depth * (4 * N * D * D + 2 * N * N * D)
        alive = groups * (T * D + 8 * N * D + self.num_heads * N * N)  # a block: its input, norm, qkv, heads, answer
        return Size(params, macs, FLOAT * params, FLOAT * alive)

    def head(self) -> Size:
        """The vote: norm and classifier."""
        D, C = self.embed_dim, self.num_classes
        params = 2 * D + D * C + (C > 0) * C
        return Size(params, D * C, FLOAT * params, FLOAT * ((self.num_groups + 2) * D + C))

    def whole(self) -> Size:
        """The model in one place."""
        return self.trunk(self.num_groups) + self.attention(self.num_groups) + self.head()

    def board(self, groups: int, trunk: str) -> Size:
        """What a board of so many groups holds and does, with the trunk on the "hub" or on the "boards"."""
        own = self.attention(groups)
        return own if trunk == "hub" else self.trunk(groups) + own

    def hub(self, trunk: str) -> Size:
        """What the hub itself holds and does."""
        return self.trunk(self.num_groups) + self.head() if trunk == "hub" else self.head()

    def bytes_in(self, groups: int, trunk: str) -> int:
        """Payload of an image to a board of so many groups: their tokens, or the picture in uint8."""
        if trunk == "hub":
            return FLOAT * groups * self.tokens_per_group * self.embed_dim
        return self.in_chans * prod(self.img_size)

    def bytes_out(self, groups: int) -> int:
        """Payload of its answer: the class tokens."""
        return FLOAT * groups * self.embed_dim

    def _projection(self, own: int) -> Size:
        D, pixels = self.embed_dim, prod(self.final_map[1:])
        params = (pixels + 1) * D
        return Size(params, own * pixels * D, FLOAT * params, FLOAT * own * (pixels + D))

    def _stages(self, own: int) -> Size:
        widths = list(pairwise((self.in_chans, *self.kernels)))
        outputs = (*self.kernels[:-1], own)[: len(widths)]
        size, total = self.img_size, Size()
        for (before, width), out, kernel, pool in zip(widths, outputs, self.kernel_sizes, self.pools, strict=True):
            pixels, convolutions = prod(size), before * width * kernel**2 + width * out * 9
            params = convolutions + 2 * (width + out)
            weights = FLOAT * (params + 2 * (width + out)) + 2 * COUNTER
            alive = pixels * (before + 2 * max(width, out))  # its input, and what goes in and out of a BatchNorm
            total += Size(params, pixels * convolutions, weights, FLOAT * alive)
            size = map_size_of(size, (kernel,), (pool,))
        return total


_last_map = cache(last_map_of)


@cache
def _cnn(name: str, in_chans: int, img_size: tuple[int, int]) -> Size:
    """A CNN of timm, counted once, on the meta device."""
    alive = 0

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal alive
        alive = max(alive, sum(each.numel() for each in (*inputs, output) if isinstance(each, Tensor)))

    with torch.device("meta"), torch.inference_mode():
        cnn = CnnTrunk(name, in_chans, None, pretrained=False, frozen=True).eval()
        for module in cnn.modules():
            module.register_forward_hook(see)
        with FlopCounterMode(display=False) as counter:
            cnn(torch.empty(1, in_chans, *img_size))
    return Size(count_params(cnn), counter.get_total_flops() // 2, weights_size(cnn), FLOAT * alive)
