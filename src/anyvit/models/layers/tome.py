"""ToMe: in every block the most alike tokens become one. Needs no class token and no training.

Paper:    Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman, ICLR 2023, arXiv 2210.09461
Weights:  those of any plain ViT, unchanged: it has no parameters
Differs:  any number of prefix tokens stays; ties and zero keys are decided alike everywhere; keys are compared after
          their norm; sizes go from block to block as arguments. Where a head pools, each token is put back in all the
          places it came from, so that the plain mean is the mean by size
Letters:  B images, N tokens that enter a block, P prefix tokens, r tokens merged away, d channels a head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.layers.token_reduction import (
    ReducedViT,
    Seam,
    Tokens,
    insert_reducers,
    restore,
    rows,
    why_not_reducible,
)


@dataclass(frozen=True, slots=True)
class Matching:
    """Which tokens are merged into which: the map of ToMe.

    Attributes:
        stays: The rows that stay, in their new order (B, M).
        merged: The rows that are merged away, (B, r).
        into: By merged row, the place in `stays` of the one it is merged into, (B, r).
        count: N. Rows in neither `stays` nor `merged` are thrown away.
    """

    stays: Tensor
    merged: Tensor
    into: Tensor
    count: int

    @property
    def places(self) -> Tensor:
        new = torch.arange(self.stays.shape[1], device=self.stays.device).expand_as(self.stays)
        nowhere = self.stays.new_full((self.stays.shape[0], self.count), -1)
        return nowhere.scatter(1, self.stays, new).scatter(1, self.merged, self.into)

    @property
    def origins(self) -> Tensor:
        return self.stays.scatter(1, self.into, -1)

    def merge(self, x: Tensor, how: Literal["sum", "mean", "amax"]) -> Tensor:
        """`x` (B, N, D) after merging, (B, M, D): each token together with those merged into it."""
        index = self.into[..., None].expand(-1, -1, x.shape[-1])
        return rows(x, self.stays).scatter_reduce(1, index, rows(x, self.merged), how)

    def unmerge(self, x: Tensor) -> Tensor:
        """Back from (B, M, D) to (B, N, D): each token gets what it went into, zeros where it was thrown away."""
        return restore(x, self.places)


def match(metric: Tensor, r: int, num_prefix_tokens: int = 0) -> Matching:
    """Merge the r tokens at even positions that are most like one at an odd position, each into that one.

    Args:
        metric: What tokens are compared by, (B, N, d). No gradient goes through.
        r: How many are merged away: at most half of the tokens that are not protected, more is cut.
        num_prefix_tokens: P, the first tokens. They are protected, and stay first in their order.

    Returns:
        N - r tokens: the protected ones, the other even ones, the other odd ones. The even ones are in their order;
        without protected tokens in that of falling likeness.
    """
    batch, count, _ = metric.shape
    device = metric.device
    r = min(r, (count - num_prefix_tokens) // 2)
    if r <= 0:
        none = torch.empty(batch, 0, dtype=torch.long, device=device)
        return Matching(torch.arange(count, device=device).expand(batch, -1), none, none, count)
    first_even, first_odd = num_prefix_tokens + num_prefix_tokens % 2, num_prefix_tokens | 1
    likeness, best = _most_alike(metric, slice(first_even, None, 2), slice(first_odd, None, 2))
    order = _falling(likeness)
    gone, unmerged = order[:, :r], order[:, r:]
    if num_prefix_tokens:
        unmerged = unmerged.sort(dim=1).values
    prefix, odd = torch.arange(num_prefix_tokens, device=device), torch.arange(first_odd, count, 2, device=device)
    stays = torch.cat((prefix.expand(batch, -1), first_even + 2 * unmerged, odd.expand(batch, -1)), dim=1)
    into = best.gather(1, gone) + (num_prefix_tokens + unmerged.shape[1])
    return Matching(stays, first_even + 2 * gone, into, count)


def match_every(metric: Tensor, k: int) -> Matching:
    """Of each k tokens the last stays, and the others are merged into whichever of those is most like them.

    Only down to N // k tokens; what is left over at the end is thrown away.
    """
    batch, count, _ = metric.shape
    numbers = torch.arange(count - count % k, device=metric.device).view(-1, k)
    last, others = numbers[:, -1], numbers[:, :-1].flatten()
    _, best = _most_alike(metric, others, last)
    return Matching(last.expand(batch, -1), others.expand(batch, -1), best, count)


@torch.no_grad()
def _most_alike(metric: Tensor, some: slice | Tensor, others: slice | Tensor) -> tuple[Tensor, Tensor]:
    """For each of `some` the highest cosine with one of `others`, and which one; a zero vector has a cosine of 0."""
    keys = metric.float()
    keys = keys / keys.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    likeness = keys[:, some] @ keys[:, others].transpose(1, 2)
    if torch.onnx.is_in_onnx_export():  # the maximum and its place would be two operators, four times as slow
        highest, best = likeness.topk(1, dim=-1)
        return highest[..., 0], best[..., 0]
    return likeness.max(dim=-1)


def _falling(scores: Tensor) -> Tensor:
    """The positions of `scores` (B, N) from the highest to the lowest; equal ones in their order."""
    if torch.onnx.is_in_onnx_export():  # a stable sort cannot be written, and ONNX's own top k is stable
        return scores.topk(scores.shape[1], dim=1).indices
    return scores.argsort(dim=1, descending=True, stable=True)


def merge_by_size(matching: Matching, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean of merged tokens, weighted by their sizes, and the new sizes (B, M, 1) in float32; None: all are 1.

    A product with the few rows that are merged away takes less time than scattering them, and every runtime has it.
    """
    sizes = x.new_ones(*x.shape[:2], 1, dtype=torch.float32) if sizes is None else sizes.detach()
    order, count = torch.cat((matching.stays, matching.merged), dim=1), matching.stays.shape[1]
    stay, go = sizes.gather(1, order[..., None]).tensor_split([count], dim=1)
    numbers = torch.arange(count, device=x.device)[:, None]
    joined = (numbers == matching.into[:, None]) * go.transpose(1, 2)  # (B, M, r)
    total = stay + joined.sum(-1, keepdim=True)
    own, others = (stay / total).to(x.dtype), (joined / total).to(x.dtype)
    staying, going = rows(x, order).tensor_split([count], dim=1)
    return torch.addcmul(others @ going, staying, own), total


@dataclass(frozen=True, slots=True)
class ToMe:
    """How one block merges.

    Attributes:
        r: How many tokens are merged away; more than half of the patch tokens is cut to half.
        proportional: Whether a token of size s counts as s keys in the attention. Good for models that were trained
            with labels; the paper leaves it off for masked auto-encoders that are not trained for merging.
    """

    r: int
    proportional: bool

    def left(self, patches: int) -> int:
        if not isinstance(self.r, int) or self.r < 0:
            raise SettingError(f"r must be a whole number, not a negative one: got {self.r!r}")
        return patches - min(self.r, patches // 2)

    def overridden(self, keep_rate: float | None, tokens: int | None) -> ToMe:
        raise SettingError("keep_rate and tokens are for EViT, and this model merges tokens (ToMe)")

    def __call__(self, tokens: Tokens, seam: Seam) -> Tokens:
        if self.left(tokens.patches) == tokens.patches:
            return tokens
        matching = match(seam.mean_key(), self.r, tokens.num_prefix_tokens)
        x, sizes = merge_by_size(matching, tokens.x, tokens.sizes)
        return tokens._replace(x=x, sizes=sizes, maps=(*tokens.maps, matching))


def merge_schedule(r: int | list[int] | tuple[int, ...], depth: int, *, inflect: float = 0.0) -> list[int]:
    """How many tokens each block merges away.

    Args:
        r: The mean over blocks; or a list by block, which zeros follow where it is shorter than the model.
        depth: Number of blocks.
        inflect: From -1, which falls from 2 r to 0 as in the paper, to 1, which rises. 0 is constant.

    Raises:
        SettingError: `inflect` outside -1 to 1, for a list, or for a single block.
    """
    if isinstance(r, list | tuple):
        if inflect:
            raise SettingError(f"a list says by itself how r changes: leave out inflect {inflect:g}")
        return [*r, *[0] * (depth - len(r))]
    if not inflect:
        return [r] * depth
    if not -1 <= inflect <= 1 or depth < 2:
        raise SettingError(f"inflect must be from -1 to 1, over at least 2 blocks: got {inflect:g} over {depth}")
    first = int(r * (1 - inflect))
    last = 2 * r - first
    return [int(first + block * (last - first) / (depth - 1)) for block in range(depth)]


def tome(
    model: nn.Module,
    r: int | list[int] | tuple[int, ...] = 13,
    *,
    inflect: float = 0.0,
    proportional: bool = True,
) -> ReducedViT:
    """A plain ViT that merges tokens that are alike, r in each block. It shares the weights of `model`.

    Args:
        model: Of timm, with any prefix tokens and any pooling. It is left as it is.
        r: As in `merge_schedule`; of a longer list the rest is not used. `token_counts()` tells what is really left.
        inflect: As in `merge_schedule`.
        proportional: Whether merged tokens count as often as they stand for tokens in the attention.

    Raises:
        ModelError: The model needs all its tokens, or is no plain ViT.
        SettingError: A negative r, with its block; or what `merge_schedule` refuses.
    """
    if reason := why_not_reducible(model):
        raise ModelError(f"ToMe cannot reduce this {type(model).__name__}: {reason}")
    assert isinstance(model, VisionTransformer)
    depth = len(model.blocks)
    schedule = merge_schedule(r, depth, inflect=inflect)[:depth]
    return insert_reducers(model, [ToMe(merged, proportional) for merged in schedule])
