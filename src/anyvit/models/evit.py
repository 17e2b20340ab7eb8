"""EViT: a DeiT that keeps the patch tokens its class token attends to, and merges or drops the rest. So does ToMe.

Paper:    Liang, Ge, Tong, Song, Wang, Xie, ICLR 2022, arXiv 2202.07800
Weights:  youweiliang/evit; the layout is that of timm's deit_small_patch16_224
Differs:  any plain ViT of timm takes either method: `layers/evit.py` and `layers/tome.py`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyvit.errors import SettingError
from anyvit.models import hydravit
from anyvit.models.layers.evit import evit
from anyvit.models.layers.token_reduction import ReducedViT

PUBLISHED_LOCATIONS = (3, 6, 9)


def from_reference(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> ReducedViT:
    """The model that published weights belong to.

    Args:
        weights: In the layout of timm's VisionTransformer.
        config: The reference's words: `base_keep_rate` and `drop_loc`, or `keep_rate` as a list by block; `fuse_token`.
            An `img_size` that is not the weights' own resizes the position table by the reference's rule. More as for
            HydraViT. The keep rate is not in the weights, so it must be given.

    Raises:
        ModelError: Weights that are not a plain ViT's, or that contradict `config`.
        SettingError: No keep rate, an unknown name in `config`, or a value that cannot be.
    """
    shape = dict(config or {})
    fuse = shape.pop("fuse_token", False)
    by_block, base = shape.pop("keep_rate", None), shape.pop("base_keep_rate", None)
    at = shape.pop("drop_loc", PUBLISHED_LOCATIONS)
    if (by_block is None) == (base is None):
        raise SettingError(
            "the weights do not tell the keep rate: give base_keep_rate, or keep_rate as a list by block"
        )
    dense = hydravit.from_reference(_resized(weights, shape.get("img_size")), shape)
    plain = dense.extract(dense.num_heads)
    return evit(plain, base, at=at, fuse=fuse) if by_block is None else evit(plain, by_block, fuse=fuse)


def _resized(weights: Mapping[str, Tensor], img_size: int | Sequence[int] | None) -> Mapping[str, Tensor]:
    """The weights with a position table for images of that size: bicubic, without antialiasing."""
    if img_size is None or "pos_embed" not in weights or "patch_embed.proj.weight" not in weights:
        return weights
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    patch_height, patch_width = weights["patch_embed.proj.weight"].shape[2:]
    grid = height // patch_height, width // patch_width
    prefix, patches = weights["pos_embed"].tensor_split([1], dim=1)
    side = int(patches.shape[1] ** 0.5)
    if patches.shape[1] in (grid[0] * grid[1], 0) or side * side != patches.shape[1]:
        return weights
    table = patches.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
    return {**weights, "pos_embed": torch.cat((prefix.float(), table.flatten(2).transpose(1, 2)), dim=1)}
