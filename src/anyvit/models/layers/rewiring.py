"""Heads and hidden units in the order of their weights' size, in place: what a super-network cuts off matters least.

The function stays the same (ViT-ResNAS, arXiv 2109.00642). What an optimizer remembers of the weights is not reordered,
as in the reference. For trained plain ViTs see `importance.py`, which changes no model, and orders channels too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def order_heads(qkv: nn.Linear, proj: nn.Linear, num_heads: int) -> None:
    """The heads of an attention by falling sum of absolute weights and biases that lead to and from each.

    Args:
        qkv: Rows [queries of all heads | keys | values].
        proj: Its columns read the heads in their order.
        num_heads: Of equal size.
    """
    size = proj.in_features // num_heads
    towards = _size_of_rows(qkv).view(3, num_heads, size).sum((0, 2))
    away = proj.weight.abs().sum(0).view(num_heads, size).sum(1)
    order = _falling(towards + away)
    columns = torch.arange(proj.in_features, device=order.device).view(num_heads, size)[order].flatten()
    rows = torch.cat([columns + third * proj.in_features for third in range(3)])
    _reorder(qkv, proj, rows, columns)


@torch.no_grad()
def order_hidden(fc1: nn.Linear, fc2: nn.Linear) -> None:
    """The hidden units of an MLP by falling sum of absolute weights and biases that lead to and from each."""
    order = _falling(_size_of_rows(fc1) + fc2.weight.abs().sum(0))
    _reorder(fc1, fc2, order, order)


def _size_of_rows(linear: nn.Linear) -> Tensor:
    return linear.weight.abs().sum(1) + linear.bias.abs()


def _falling(importance: Tensor) -> Tensor:
    return importance.argsort(descending=True, stable=True)


def _reorder(before: nn.Linear, after: nn.Linear, rows: Tensor, columns: Tensor) -> None:
    before.weight.copy_(before.weight[rows])
    before.bias.copy_(before.bias[rows])
    after.weight.copy_(after.weight[:, columns])
