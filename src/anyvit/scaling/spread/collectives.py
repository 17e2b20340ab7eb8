"""What travels between the processes of a row while they learn, with its way back for the gradient.

Letters: B images, K = G * T tokens, T tokens a group, G groups, g groups of a process, D channels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function
from torch.distributed import ProcessGroup


def gather_groups(x: Tensor, sizes: Sequence[int], row: ProcessGroup) -> Tensor:
    """The class tokens (B, G, D) of a whole row, on each of its processes.

    They all compute the same loss of them, so its gradient needs no way back: each takes its own slice.

    Args:
        x: Those of this process, (B, g, D).
        sizes: How many groups each process of the row has.
        row: Its processes.
    """
    return _GatherGroups.apply(x, tuple(sizes), row)


def deal_tokens(
    tokens: Tensor | None, shape: Sequence[int], sizes: Sequence[int], row: ProcessGroup, device: torch.device
) -> Tensor:
    """Tokens from the first process of a row to those that hold their groups: (B, g * T, D) on each.

    Args:
        tokens: All of them, (B, K, D), on the first process. Elsewhere None.
        shape: B, T, D.
        sizes: How many groups each process of the row has.
        row: Its processes.
        device: Where they are to be.
    """
    anchor = torch.empty(0, device=device, requires_grad=True)  # gradients come back even where no trunk learns of them
    return _DealTokens.apply(tokens, anchor, tuple(shape), tuple(sizes), row)


def collect_groups(x: Tensor, sizes: Sequence[int], row: ProcessGroup) -> Tensor:
    """The class tokens (B, G, D) of a whole row on its first process; elsewhere zeros that only bring gradients back.

    Args:
        x: Those of this process, (B, g, D).
        sizes: How many groups each process of the row has.
        row: Its processes.
    """
    return _CollectGroups.apply(x, tuple(sizes), row)


def all_reduce_sum(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over the processes of `group`, each of which goes on to a loss of its own; those are added up too."""
    return _AllReduceSum.apply(x, group)


class _GatherGroups(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...], row: ProcessGroup) -> Tensor:
        B, _, D = x.shape
        ctx.own = _slices(sizes)[row.rank()]
        padded = x.new_zeros(B, max(sizes), D)  # what is gathered must be of one size
        padded[:, : x.shape[1]] = x
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded, group=row)
        return torch.cat([each[:, :size] for each, size in zip(gathered, sizes, strict=True)], dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0][:, ctx.own], None, None


class _DealTokens(Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor | None, anchor: Tensor, shape: Sequence[int], sizes: tuple[int, ...], row: ProcessGroup
    ) -> Tensor:
        B, T, D = shape
        ctx.row, ctx.tokens = row, [size * T for size in sizes]
        if tokens is None:
            return _received([(B, ctx.tokens[row.rank()], D)], [0], anchor, row)[0]
        first, *others = tokens.split(ctx.tokens, dim=1)
        _send(others, range(1, len(sizes)), row)
        return first.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (own,) = gradients
        if ctx.row.rank():
            _send([own], [0], ctx.row)
            return None, None, None, None, None
        B, _, D = own.shape
        shapes = [(B, tokens, D) for tokens in ctx.tokens[1:]]
        others = _received(shapes, range(1, len(ctx.tokens)), own, ctx.row)
        return torch.cat([own, *others], dim=1), None, None, None, None


class _CollectGroups(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...], row: ProcessGroup) -> Tensor:
        B, _, D = x.shape
        ctx.sizes, ctx.row = sizes, row
        if row.rank():
            _send([x], [0], row)
            return x.new_zeros(B, sum(sizes), D)
        others = _received([(B, size, D) for size in sizes[1:]], range(1, len(sizes)), x, row)
        return torch.cat([x, *others], dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        B, _, D = gradient.shape
        if place := ctx.row.rank():
            return _received([(B, ctx.sizes[place], D)], [0], gradient, ctx.row)[0], None, None
        own, *others = gradient.split(ctx.sizes, dim=1)
        _send(others, range(1, len(ctx.sizes)), ctx.row)
        return own, None, None


class _AllReduceSum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        total = gradients[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _send(tensors: Sequence[Tensor], places: Sequence[int], row: ProcessGroup) -> None:
    """One tensor to each of these places in the row, as float32 whatever it is computed in."""
    waiting = []
    for tensor, place in zip(tensors, places, strict=True):
        content = tensor.detach().float().contiguous()
        waiting.append((content, dist.isend(content, group=row, group_dst=place)))
    for _, work in waiting:
        work.wait()  # type: ignore[union-attr]


def _received(shapes: Sequence[Sequence[int]], places: Sequence[int], like: Tensor, row: ProcessGroup) -> list[Tensor]:
    tensors = [torch.empty(*shape, device=like.device) for shape in shapes]
    waiting = [dist.irecv(t, group=row, group_src=place) for t, place in zip(tensors, places, strict=True)]
    for work in waiting:
        work.wait()  # type: ignore[union-attr]
    return [tensor.to(like.dtype) for tensor in tensors]
