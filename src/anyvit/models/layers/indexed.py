"""Cut a plain ViT to any of its channels, heads and MLP units, or reorder them: a ViT in memory of its own.

What is cut where is the table of `sliceable.py`, with sets of positions in the place of prefixes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.contract import blocks_of, share
from anyvit.models.layers.sliceable import Cut, Stays, cuts, note_sizes, replace_parameters, why_not_sliceable

Positions = tuple[int, ...]
ViT = TypeVar("ViT", bound=VisionTransformer)


@dataclass(frozen=True)
class Kept:
    """What stays of a model: positions, ascending where it is cut, in the new order where it is reordered.

    Attributes:
        embed: Channels of the residual stream, which all layers share.
        heads: By block, heads of the attention.
        hidden: By block, hidden units of the MLP.
    """

    embed: Positions
    heads: tuple[Positions, ...]
    hidden: tuple[Positions, ...]

    @classmethod
    def everything(cls, model: VisionTransformer) -> Kept:
        """All of `model`: what to start from with `dataclasses.replace`."""
        blocks = blocks_of(model)
        return cls(
            tuple(range(model.embed_dim)),
            tuple(tuple(range(block.attn.num_heads)) for block in blocks),
            tuple(tuple(range(block.mlp.fc1.out_features)) for block in blocks),
        )

    def to_json(self) -> dict[str, Any]:
        return {"embed": list(self.embed), "heads": list(map(list, self.heads)), "hidden": list(map(list, self.hidden))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Kept:
        heads, hidden = (tuple(tuple(block) for block in data[name]) for name in ("heads", "hidden"))
        return cls(tuple(data["embed"]), heads, hidden)


def why_not_indexable(model: nn.Module) -> str | None:
    """The reason why `model` cannot be cut to any of its units, or None."""
    if isinstance(model, VisionTransformer) and type(model).forward is not VisionTransformer.forward:
        return "it has a forward of its own; an elastic ViT gives a plain one by `extract(heads)`"
    return why_not_sliceable(model)


def checked_indexable(model: nn.Module) -> VisionTransformer:
    """The model itself. Raises ModelError, with the reason, where it cannot be cut."""
    reason = why_not_indexable(model)
    if reason:
        raise ModelError(f"{type(model).__name__} cannot be cut to some of its units: {reason}")
    assert isinstance(model, VisionTransformer)
    return model


def sliced(model: nn.Module, kept: Kept) -> VisionTransformer:
    """The ViT of what is kept, in memory of its own. Of a model on the meta device: its form, without weights.

    Where every block keeps as many heads, and mlp_ratio * embed_dim hidden units, timm's constructor makes the same
    form from embed_dim and num_heads.

    Raises:
        ModelError: The model cannot be cut; the message names the part.
        SettingError: Positions that are none of the model's, none at all, or not in ascending order.
    """
    model = checked_indexable(model)
    _check(kept, Kept.everything(model))
    return _indexed(model, kept)


def reordered(model: ViT, order: Kept) -> ViT:
    """A copy of `model` with its units in another order: `order` names every one of them once.

    It answers as `model` does, within rounding, and is of the same class: an elastic ViT stays elastic.

    Raises:
        ModelError: The model cannot be cut; the message names the part.
        SettingError: An order that is not of all units of the model.
    """
    if reason := why_not_sliceable(model):
        raise ModelError(f"the units of a {type(model).__name__} cannot be reordered: {reason}")
    heads, hidden = (tuple(tuple(sorted(block)) for block in blocks) for blocks in (order.heads, order.hidden))
    if Kept(tuple(sorted(order.embed)), heads, hidden) != Kept.everything(model):
        raise SettingError("an order names every channel, and of each block every head and hidden unit, once")
    return _indexed(model, order)


def _indexed(model: ViT, kept: Kept) -> ViT:
    blocks = [
        Stays(torch.tensor(kept.embed), channels_of(heads, block.attn.head_dim), torch.tensor(hidden))
        for block, heads, hidden in zip(blocks_of(model), kept.heads, kept.hidden, strict=True)
    ]
    found = cuts(model, blocks)
    twin = share(model)
    replace_parameters(twin, lambda name, full: take(found[name], full))
    note_sizes(twin, [Stays(len(stays.embed), len(stays.attend), len(stays.hidden)) for stays in blocks])
    return twin


def channels_of(heads: Sequence[int] | Tensor, head_dim: int) -> Tensor:
    """The positions of the channels of these heads inside the attention."""
    return (torch.as_tensor(heads)[:, None] * head_dim + torch.arange(head_dim)).flatten()


def take(cut: Cut[Tensor] | Cut[Tensor | None], tensor: Tensor) -> Tensor:
    """The rows and columns of `tensor` that stay, in memory of its own."""
    chosen = [(dim, positions) for dim, positions in enumerate(cut.stays) if positions is not None]
    if not chosen:
        return tensor.clone()
    part = cut.apart(tensor)
    for dim, positions in chosen:
        part = part.index_select(dim, positions.to(part.device))
    return part.flatten(0, 1) if cut.groups > 1 else part


def _check(kept: Kept, whole: Kept) -> None:
    if (len(kept.heads), len(kept.hidden)) != (len(whole.heads), len(whole.hidden)):
        raise SettingError(
            f"heads and hidden units are kept by block: the model has {len(whole.heads)} blocks, "
            f"not {len(kept.heads)} and {len(kept.hidden)}"
        )
    _check_positions("channels", kept.embed, len(whole.embed))
    for index in range(len(whole.heads)):
        _check_positions(f"heads of blocks.{index}", kept.heads[index], len(whole.heads[index]))
        _check_positions(f"hidden units of blocks.{index}", kept.hidden[index], len(whole.hidden[index]))


def _check_positions(what: str, positions: Positions, count: int) -> None:
    ascending = all(one < other for one, other in pairwise(positions))
    if not positions or not ascending or positions[0] < 0 or positions[-1] >= count:
        raise SettingError(f"the {what} that stay must be ascending positions below {count}: got {list(positions)}")
