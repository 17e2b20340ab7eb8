"""The seam between attention and MLP where a plain ViT may lose tokens. EViT and ToMe plug in here.

The attention stays fused: what a reducer wants to know of it is computed aside, from queries and keys. What goes from
block to block goes as arguments and results, so that nothing is left over between two calls.

Letters: B images, N tokens that enter the first block, M tokens left, P prefix tokens (class, distillation, registers),
         H heads, d channels a head, D embed_dim
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from timm.layers import Attention
from timm.models._features import feature_take_indices
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anyvit.errors import ModelError, SettingError
from anyvit.models.contract import blocks_of, share, why_not_plain


class TokenMap(Protocol):
    """Where the tokens of one block went. Nothing is computed before it is asked for."""

    @property
    def places(self) -> Tensor:
        """By token that came in, the row it went to; -1 where it was thrown away."""

    @property
    def origins(self) -> Tensor:
        """By token that goes out, the row it came from; -1 where it is made of several."""


class Tokens(NamedTuple):
    """What goes from block to block.

    Attributes:
        x: (B, M, D), the prefix tokens first.
        num_prefix_tokens: P. They always stay.
        sizes: How many tokens each stands for, (B, M, 1) in float32. None: itself alone.
        maps: One for each reduction so far.
    """

    x: Tensor
    num_prefix_tokens: int
    sizes: Tensor | None = None
    maps: tuple[TokenMap, ...] = ()

    @property
    def patches(self) -> int:
        """How many tokens come after the prefix: a constant, to tracers too."""
        return int(self.x.shape[1]) - self.num_prefix_tokens

    def places(self) -> Tensor:
        """By token of the first block, the row where it is now (B, N); -1 where it was thrown away."""
        if not self.maps:
            return self._rows()
        found = self.maps[0].places
        for step in self.maps[1:]:
            found = _follow(step.places, found)
        return found

    def origins(self) -> Tensor:
        """By token, which one of the first block it is (B, M); -1 where it is made of several."""
        if not self.maps:
            return self._rows()
        found = self.maps[-1].origins
        for step in reversed(self.maps[:-1]):
            found = _follow(step.origins, found)
        return found

    def sources(self) -> Tensor:
        """By token, which ones of the first block went into it: ones and zeros (B, M, N) in the type of `x`."""
        return (self.places()[:, None] == self._rows()[..., None]).to(self.x.dtype)

    def restored(self) -> Tensor:
        """The whole sequence (B, N, D): in each place what its token went into, zeros where it was thrown away."""
        return restore(self.x, self.places()) if self.maps else self.x

    def _rows(self) -> Tensor:
        return torch.arange(self.x.shape[1], device=self.x.device).expand(self.x.shape[:2])


def rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows `index` (B, M) of `x` (B, N, D). On a CPU two to four times as fast as `x[...]`, seven as `gather`."""
    first = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return F.embedding(index + first, x.flatten(0, 1))


def restore(x: Tensor, places: Tensor) -> Tensor:
    """In each of `places` (B, N) that row of `x`, and zeros where it is -1."""
    return rows(x, places.clamp(min=0)).masked_fill(places[..., None] < 0, 0)


def _follow(step: Tensor, found: Tensor) -> Tensor:
    """From each of `found` one step further; -1 stays."""
    return step.gather(1, found.clamp(min=0)).masked_fill(found < 0, -1)


@dataclass(frozen=True, slots=True)
class Seam:
    """What a block shows between attention and MLP: its attention, with queries and keys (B, H, M, d) after norms."""

    attn: Attention
    queries: Tensor
    keys: Tensor

    def class_row(self) -> Tensor:
        """What the first token attends to, the mean over heads (B, M)."""
        logits = self.queries[:, :, :1] @ self.keys.transpose(-2, -1) * self.attn.scale
        return self.attn.attn_drop(logits.softmax(-1)).mean(1)[:, 0]

    def mean_key(self) -> Tensor:
        """The mean over heads of the keys (B, M, d)."""
        return self.keys.mean(1)


class TokenReducer(Protocol):
    """One block's way to lose tokens: a setting, without weights and without a state."""

    @property
    def proportional(self) -> bool:
        """Whether a token counts in the attention as often as its size says."""

    def left(self, patches: int) -> int:
        """How many of that many patch tokens are left. Raises SettingError where the setting cannot be."""

    def overridden(self, keep_rate: float | None, tokens: int | None) -> TokenReducer:
        """This reducer with another keep rate, or a number of tokens to keep, for one call."""

    def __call__(self, tokens: Tokens, seam: Seam) -> Tokens:
        """The tokens that are left: the prefix tokens, then others in any order."""


def attend(attn: Attention, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Seam]:
    """timm's self-attention, which shows its queries and keys.

    Args:
        attn: Its weights.
        x: Tokens (B, M, D), normalized.
        sizes: How often each token counts as a key, (B, M, 1). None: once.
    """
    qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, attn.head_dim))
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys = attn.q_norm(queries), attn.k_norm(keys)
    bias = None if sizes is None else sizes.log().transpose(1, 2)[:, None].to(queries.dtype)
    dropout = attn.attn_drop.p if attn.training else 0.0
    heads = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout)
    attended = attn.norm(heads.transpose(1, 2).flatten(2))
    gate: nn.Module | None = getattr(attn, "gate", None)
    if gate is not None:
        attended = attended * gate(x).sigmoid()
    return attn.proj_drop(attn.proj(attended)), Seam(attn, queries, keys)


class ReducingBlock(Block):
    """timm's Block with a seam between attention and MLP. `insert_reducers` makes it of a Block, with the same keys."""

    attn: Attention
    reducer: TokenReducer

    def forward(self, tokens: Tokens, reducer: TokenReducer) -> Tokens:  # type: ignore[override]
        attended, seam = attend(self.attn, self.norm1(tokens.x), tokens.sizes if reducer.proportional else None)
        tokens = tokens._replace(x=tokens.x + self.drop_path1(self.ls1(attended)))
        tokens = reducer(tokens, seam)
        return tokens._replace(x=tokens.x + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens.x)))))


class ReducedViT(VisionTransformer):
    """A plain ViT that loses tokens on the way. `insert_reducers` makes it of one, with the same keys.

    Where the head reads the class token, features are the tokens that are left. Where it pools, every patch has its
    place again and holds what it went into: so the mean is weighted by size, and maps are whole.
    """

    def forward(self, x: Tensor, **override: Any) -> Tensor:  # type: ignore[override]
        """Logits (B, K). `override` is that of `stages`."""
        return self.forward_head(self.forward_features(x, **override))

    def forward_features(self, x: Tensor, **override: Any) -> Tensor:  # type: ignore[override]
        return self._features(deque(self.stages(x, **override), maxlen=1).pop())

    def _features(self, tokens: Tokens) -> Tensor:
        normalized = tokens._replace(x=self.norm(tokens.x))
        return normalized.x if self.global_pool == "token" else normalized.restored()

    def stages(
        self,
        x: Tensor,
        *,
        keep_rate: float | Sequence[float | None] | None = None,
        tokens: int | Sequence[int | None] | None = None,
    ) -> Iterator[Tokens]:
        """The tokens after each block, one after the other.

        Args:
            x: Images (B, C, S, S).
            keep_rate: For this call, EViT's share of patch tokens to keep, in blocks made for it; or a list by block.
            tokens: For this call, how many patch tokens to keep, in any block; or a list by block, None for its own.

        Raises:
            SettingError: A value that cannot be, with its block; a list that is not as long as the model is deep.
        """
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        left = Tokens(x, self.num_prefix_tokens)
        planned = self._planned(left.patches, keep_rate, tokens)
        for block, (reducer, _) in zip(self.blocks, planned, strict=True):
            step = partial(checkpoint, block, use_reentrant=False) if self.grad_checkpointing else block
            left = step(left, reducer)
            yield left

    def token_counts(self, patches: int | None = None) -> list[int]:
        """How many patch tokens are left after each block; None: of an image of the model's own size."""
        patches = self.patch_embed.num_patches if patches is None else patches
        return [left for _, left in self._planned(patches, None, None)]

    def _planned(self, patches: int, keep_rate: Any, tokens: Any) -> list[tuple[TokenReducer, int]]:
        """By block its reducer, and how many patch tokens that one leaves."""
        rates, counts = self._by_block("keep_rate", keep_rate), self._by_block("tokens", tokens)
        planned = []
        for index, block in enumerate(blocks_of(self)):
            reducer = block.reducer
            try:
                if rates[index] is not None or counts[index] is not None:
                    reducer = reducer.overridden(rates[index], counts[index])
                patches = reducer.left(patches)
            except SettingError as error:
                raise SettingError(f"blocks.{index}: {error}") from None
            planned.append((reducer, patches))
        return planned

    def _by_block(self, name: str, value: Any) -> Sequence[Any]:
        depth = len(self.blocks)
        if not isinstance(value, list | tuple):
            return [value] * depth
        if len(value) != depth:
            raise SettingError(f"{name} is one value, or one for each of {depth} blocks: got {len(value)}")
        return value

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        *,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: None = None,
    ) -> Any:
        """As in timm. Every patch has its place again and holds what it went into, zeros where it was thrown away."""
        if output_fmt not in ("NCHW", "NLC"):
            raise SettingError(f"output_fmt must be NCHW or NLC: got {output_fmt!r}")
        if attn_mask is not None:
            raise SettingError("an attention mask does not fit once tokens are lost: leave out attn_mask")
        taken, last = feature_take_indices(len(self.blocks), indices)
        wholes = []
        for index, tokens in enumerate(self.stages(x)):
            if index in taken:
                wholes.append(tokens._replace(x=self.norm(tokens.x) if norm else tokens.x).restored())
            if stop_early and index == last:
                break
        prefixes = [whole[:, : self.num_prefix_tokens] for whole in wholes]
        found: list[Any] = [whole[:, self.num_prefix_tokens :] for whole in wholes]
        if output_fmt == "NCHW":
            size = self.patch_embed.dynamic_feat_size(x.shape[-2:])
            found = [patches.transpose(1, 2).unflatten(2, size) for patches in found]
        prefixes = prefixes if return_prefix_tokens and self.num_prefix_tokens else []
        if output_dict:
            more = {"image_intermediates_prefix": prefixes} if prefixes else {}
            features = {} if intermediates_only else {"image_features": self._features(tokens)}
            return {"image_intermediates": found, **more, **features}
        found = list(zip(found, prefixes, strict=True)) if prefixes else found
        return found if intermediates_only else (self._features(tokens), found)


class ReducedViTDistilled(ReducedViT, VisionTransformerDistilled):
    """The same with DeiT's distillation token, which is a prefix token, and its second classifier."""


_REDUCED: dict[type, type[ReducedViT]] = {
    VisionTransformer: ReducedViT,
    VisionTransformerDistilled: ReducedViTDistilled,
}


def why_not_reducible(model: nn.Module) -> str | None:
    """The reason why tokens cannot be taken out of `model`, or None."""
    reason = why_not_plain(model)
    if reason and not isinstance(model, VisionTransformer):
        return f"{reason}: windows and pyramids need the whole grid of tokens"
    if reason is None and type(model) not in _REDUCED:
        return f"a {type(model).__name__} may have a forward of its own"
    return reason


def insert_reducers(model: nn.Module, reducers: Sequence[TokenReducer]) -> ReducedViT:
    """A model over the same weights, with the same keys, that loses tokens. `model` is left as it is.

    Args:
        model: A plain ViT of timm, with any number of prefix tokens.
        reducers: One for each block.

    Raises:
        ModelError: The model needs all its tokens, or is no plain ViT.
        SettingError: Another number of reducers, or one whose setting cannot be, with its block.
    """
    if reason := why_not_reducible(model):
        raise ModelError(f"{type(model).__name__} cannot lose tokens: {reason}")
    twin: Any = share(model)
    if len(reducers) != len(twin.blocks):
        raise SettingError(f"the model has {len(twin.blocks)} blocks: got {len(reducers)} reducers")
    twin.__class__ = _REDUCED[type(model)]
    for block, reducer in zip(twin.blocks, reducers, strict=True):
        block.__class__ = ReducingBlock
        block.reducer = reducer
    assert isinstance(twin, ReducedViT)
    twin.token_counts()  # refuses settings that cannot be
    return twin
