"""EViT: the class token's attention says which patch tokens stay; the others become one token, or none.

Paper:    Liang, Ge, Tong, Song, Wang, Xie, ICLR 2022, arXiv 2202.07800
Weights:  those of DeiT, unchanged: it has no parameters
Differs:  the class row is computed beside a fused attention; any number of prefix tokens stays; in training, dropout on
          that row is drawn apart from the attention's own
Letters:  B images, P prefix tokens, n patch tokens that enter a block (a fused one counts), m of them that stay
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.layers.token_reduction import (
    ReducedViT,
    Seam,
    Tokens,
    insert_reducers,
    rows,
    why_not_reducible,
)


@dataclass(frozen=True, slots=True)
class Kept:
    """Which patch tokens of a block stayed: the map of EViT.

    Attributes:
        index: Which of the n patch tokens stay, (B, m), by falling attention.
        patches: n.
        num_prefix_tokens: P.
        fused: Whether the others became one token, the last; or none.
    """

    index: Tensor
    patches: int
    num_prefix_tokens: int
    fused: bool

    @property
    def places(self) -> Tensor:
        batch, stay = self.index.shape
        elsewhere = self.num_prefix_tokens + stay if self.fused else -1
        new = torch.arange(self.num_prefix_tokens, self.num_prefix_tokens + stay, device=self.index.device)
        patches = self.index.new_full((batch, self.patches), elsewhere).scatter(1, self.index, new.expand(batch, -1))
        return torch.cat((self._prefix, patches), dim=1)

    @property
    def origins(self) -> Tensor:
        fused = self.index.new_full((self.index.shape[0], int(self.fused)), -1)
        return torch.cat((self._prefix, self.index + self.num_prefix_tokens, fused), dim=1)

    @property
    def rest(self) -> Tensor:
        """The patch tokens that do not stay, ascending (B, n - m): the members of the fused token."""
        return complement(self.index, self.patches)

    @property
    def _prefix(self) -> Tensor:
        return torch.arange(self.num_prefix_tokens, device=self.index.device).expand(self.index.shape[0], -1)


@dataclass(frozen=True, slots=True)
class EViT:
    """How one block reduces.

    Attributes:
        keep_rate: The share of patch tokens that stay, in (0, 1]. A block with 1 never reduces by a rate.
        fuse: Whether those that do not stay become one token, the sum weighted by the attention they get.
        tokens: The number of patch tokens that stay, whatever the rate.
    """

    proportional: ClassVar[bool] = False

    keep_rate: float
    fuse: bool
    tokens: int | None = None

    def stay(self, patches: int) -> int:
        """How many of that many patch tokens stay, without a fused one."""
        if self.tokens is None:
            return math.ceil(_checked(self.keep_rate) * patches)
        if not isinstance(self.tokens, int) or not 1 <= self.tokens <= patches:
            raise SettingError(f"tokens must be from 1 to the {patches} patch tokens that there are: got {self.tokens}")
        return self.tokens

    def left(self, patches: int) -> int:
        stay = self.stay(patches)
        return stay + (self.fuse and stay < patches)

    def overridden(self, keep_rate: float | None, tokens: int | None) -> EViT:
        rate = self.keep_rate if keep_rate is None else _checked(keep_rate)
        return replace(
            self, keep_rate=1 if self.keep_rate == 1 else rate, tokens=self.tokens if tokens is None else tokens
        )

    def __call__(self, tokens: Tokens, seam: Seam) -> Tokens:
        prefix, patches = tokens.num_prefix_tokens, tokens.patches
        stay = self.stay(patches)
        if stay == patches:
            return tokens
        scores, order = seam.class_row()[:, prefix:].topk(patches, dim=1)
        weights = scores[:, stay:] if self.fuse else None
        sizes = tokens.sizes
        if sizes is not None:
            sizes = _left(sizes, prefix, order, stay, None if weights is None else torch.ones_like(weights))
        kept = Kept(order[:, :stay], patches, prefix, self.fuse)
        return tokens._replace(x=_left(tokens.x, prefix, order, stay, weights), sizes=sizes, maps=(*tokens.maps, kept))


def _left(x: Tensor, prefix: int, order: Tensor, stay: int, weights: Tensor | None) -> Tensor:
    """The first `stay` patches in `order` of `x` (B, P + n, D), and the sum of the others by `weights`; or not that."""
    if weights is None:
        return torch.cat((x[:, :prefix], rows(x, order[:, :stay] + prefix)), dim=1)
    patches = rows(x, order + prefix)
    fused = weights[:, None].to(x.dtype) @ patches[:, stay:]
    return torch.cat((x[:, :prefix], patches[:, :stay], fused), dim=1)


def _checked(keep_rate: float) -> float:
    if not isinstance(keep_rate, int | float) or not 0 < keep_rate <= 1:
        raise SettingError(f"keep_rate must be above 0 and at most 1: got {keep_rate!r}")
    return keep_rate


def complement(index: Tensor, count: int) -> Tensor:
    """The numbers below `count` that are not in `index` (…, m), ascending (…, count - m)."""
    numbers = torch.arange(count, device=index.device).expand(*index.shape[:-1], count)
    return numbers.scatter(-1, index, count).sort(dim=-1).values[..., : count - index.shape[-1]]


def why_not_evit(model: nn.Module) -> str | None:
    """The reason why EViT cannot reduce the tokens of `model`, or None."""
    if reason := why_not_reducible(model):
        return reason
    assert isinstance(model, VisionTransformer)
    if not model.has_class_token:
        return "class-attention needed, and it has no class token; use tome"
    if model.global_pool != "token":
        return f"class-attention needed, and its head pools ({model.global_pool}) past the class token; use tome"
    return None


def default_locations(depth: int) -> tuple[int, ...]:
    """A quarter, half and three quarters on: blocks 3, 6 and 9 of 12, as in the paper."""
    return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)}))


def evit(
    model: nn.Module,
    keep_rate: float | list[float] | tuple[float, ...] = 0.7,
    *,
    at: Sequence[int] | None = None,
    fuse: bool = True,
) -> ReducedViT:
    """A plain ViT that keeps the patch tokens its class token attends to most. It shares the weights of `model`.

    Args:
        model: Of timm, with a class token that its head reads. It is left as it is.
        keep_rate: The share that stays in each of the blocks `at`, in (0, 1]; or a list for all blocks.
        at: The blocks that reduce. None: a quarter, half and three quarters on.
        fuse: Whether tokens that do not stay become one token; otherwise they are thrown away.

    Raises:
        ModelError: The model has no class token that counts, or needs all its tokens.
        SettingError: A keep rate outside (0, 1], a block that there is not, a list of another length.
    """
    if reason := why_not_evit(model):
        raise ModelError(f"EViT cannot reduce this {type(model).__name__}: {reason}")
    assert isinstance(model, VisionTransformer)
    depth = len(model.blocks)
    if isinstance(keep_rate, list | tuple):
        if at is not None:
            raise SettingError("keep rates by block say where to reduce: leave out at")
        return insert_reducers(model, [EViT(rate, fuse) for rate in keep_rate])
    at = default_locations(depth) if at is None else at
    if wrong := [block for block in at if not 0 <= block < depth]:
        raise SettingError(f"tokens can be reduced at blocks 0 to {depth - 1}: got {wrong[0]}")
    return insert_reducers(model, [EViT(keep_rate if block in at else 1, fuse) for block in range(depth)])


def keep_rate_at(step: int, *, base: float, steps_per_epoch: int, start: int, end: int) -> float:
    """The keep rate of a step in training: 1, then half a cosine down, then `base`.

    Args:
        step: Steps done before this one.
        base: The rate that it ends with.
        steps_per_epoch: Steps in an epoch.
        start: The epoch in which it begins to fall.
        end: The first epoch with `base`.
    """
    epoch = step // steps_per_epoch
    if epoch < start:
        return 1.0
    if epoch >= end:
        return base
    done = (step - start * steps_per_epoch) / (steps_per_epoch * (end - start))
    return base + (1 - base) * (1 + math.cos(math.pi * done)) / 2
