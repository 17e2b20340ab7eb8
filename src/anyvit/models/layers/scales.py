"""One model over an image at several sizes: large ones as tiles, their features side by side on the channels.

Paper:    Shi, Wu, Mao, Wang, Darrell, *When Do We Not Need Larger Vision Models?*, ECCV 2024, arXiv 2403.13043
Differs:  tokens and maps are told apart by their shape; `max_batch` bounds the tiles of a call, where the reference
          can only run one tile of every image at a time
Letters:  B images of side S, z their side at one size, k tiles a side, P prefix tokens, h side of a tile's features,
          G side of the grid that all sizes come to
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from anyvit.errors import ModelError, SettingError


@dataclass(frozen=True, slots=True)
class Size:
    """A side in pixels, and how many tiles it is cut into."""

    side: int
    tiles: int


def multi_scale(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    scales: Sequence[float] | None = None,
    *,
    img_sizes: Sequence[int] | None = None,
    tile: int | None = None,
    grid_of: int = 0,
    num_prefix_tokens: int = 0,
    max_batch: int | None = None,
    antialias: bool = False,
) -> Tensor:
    """The features of `model` at several sizes of the images, all brought to the grid of one size.

    Args:
        model: From a batch (b, C, t, t) to tokens (b, P + h * h, c), the prefix first, or to maps (b, c, h, h).
        images: (B, C, S, S).
        scales: Sizes as multiples of S; a size with a fraction of a pixel is cut down to whole ones.
        img_sizes: Sizes in pixels, in the place of `scales`.
        tile: The largest side that the model is given; larger sizes are cut into equal tiles. None: S.
        grid_of: The position in the list of the size whose grid all others are pooled or repeated to.
        num_prefix_tokens: P: class, distillation and register tokens. Of tiles their mean is taken.
        max_batch: The most tiles in a call of `model`. None: all tiles of a size at once.
        antialias: Whether images are smoothed before they are made smaller. The reference does not.

    Returns:
        Tokens (B, P + G * G, m * c) of m sizes, or maps (B, m * c, G, G): the channels of the first size first.

    Raises:
        SettingError: Images that are not square, no sizes, a size that cannot be cut into equal tiles, tiles that the
            model does not take, or a number out of range.
        ModelError: The features are neither maps nor tokens of a square grid.
    """
    sizes = sizes_of(images, scales, img_sizes=img_sizes, tile=tile)
    if not 0 <= grid_of < len(sizes):
        raise SettingError(f"grid_of must be the position of one of {len(sizes)} sizes, from 0: got {grid_of}")
    features = [run(model, tiles_of(images, size, antialias=antialias), max_batch) for size in sizes]
    return joined(features, sizes, grid_of=grid_of, num_prefix_tokens=num_prefix_tokens)


def sizes_of(
    images: Tensor, scales: Sequence[float] | None, *, img_sizes: Sequence[int] | None = None, tile: int | None = None
) -> list[Size]:
    """The sizes that images (B, C, S, S) are brought to. Arguments and errors are those of `multi_scale`."""
    height, width = images.shape[-2:]
    if height != width:
        side = min(height, width)
        raise SettingError(f"images are {height} x {width} pixels: several scales take square ones, as {side} x {side}")
    if not (scales or img_sizes):
        raise SettingError("give scales, such as (1, 2), or img_sizes in pixels: there are none")
    if tile is not None and tile < 1:
        raise SettingError(f"tile must be at least 1 pixel: got {tile}")
    sides = list(img_sizes) if img_sizes else [int(height * scale) for scale in scales or ()]
    return [_size(side, tile or height, given) for side, given in zip(sides, img_sizes or scales or (), strict=True)]


def _size(side: int, tile: int, given: float) -> Size:
    if side < 1:
        raise SettingError(f"scales and img_sizes must be above 0 and leave a pixel: {given:g} does not")
    tiles = math.ceil(side / tile)
    if side % tiles:
        raise SettingError(
            f"{side} pixels make no {tiles} equal tiles of at most {tile} pixels a side: "
            f"take {tiles * tile} pixels, a multiple of the tile"
        )
    return Size(side, tiles)


def tiles_of(images: Tensor, size: Size, *, antialias: bool = False) -> Tensor:
    """The images at one size, as a batch of tiles."""
    if images.shape[-1] != size.side:
        larger = F.interpolate(images.float(), (size.side, size.side), mode="bicubic", antialias=antialias)
        images = larger.to(images.dtype)
    return split(images, size.tiles)


def split(images: Tensor, tiles: int) -> Tensor:
    """Images (B, C, H, W) to their tiles, tiles * tiles * B: by tile row, then tile column, then image."""
    parts = images.unflatten(3, (tiles, -1)).unflatten(2, (tiles, -1))
    return parts.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)


def merge(parts: Tensor, tiles: int) -> Tensor:
    """The inverse of `split`."""
    return parts.unflatten(0, (tiles, tiles, -1)).permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)


def run(model: Callable[[Tensor], Tensor], tiles: Tensor, max_batch: int | None = None) -> Tensor:
    """What `model` answers to a batch of tiles, given at most `max_batch` of them at once."""
    if max_batch is not None and max_batch < 1:
        raise SettingError(f"max_batch must be at least 1: got {max_batch}")
    chunks = [tiles] if max_batch is None else tiles.split(max_batch)
    try:
        return torch.cat([model(chunk) for chunk in chunks])
    except AssertionError as error:  # how timm's models refuse a size
        side = tiles.shape[-1]
        raise SettingError(
            f"the model does not take tiles of {side} x {side} pixels: {error}. "
            "Choose sizes that are multiples of the side that it takes, and that side as tile"
        ) from error


def joined(
    features: Sequence[Tensor], sizes: Sequence[Size], *, grid_of: int = 0, num_prefix_tokens: int = 0
) -> Tensor:
    """The features of the tiles of each size, stitched, brought to one grid, and side by side on the channels."""
    if features[0].ndim == 4 and num_prefix_tokens:
        raise SettingError(f"maps have no prefix tokens: num_prefix_tokens must be 0, got {num_prefix_tokens}")
    are_tokens = features[0].ndim == 3
    maps = [_grid(tokens, num_prefix_tokens) for tokens in features] if are_tokens else list(features)
    stitched = [merge(part, size.tiles) for part, size in zip(maps, sizes, strict=True)]
    grid = stitched[grid_of].shape[-2:]
    together = torch.cat([_brought_to(grid, stitch) for stitch in stitched], dim=1)
    if not are_tokens:
        return together
    prefixes = [
        tokens[:, :num_prefix_tokens].unflatten(0, (size.tiles**2, -1)).mean(0)
        for tokens, size in zip(features, sizes, strict=True)
    ]
    return torch.cat([torch.cat(prefixes, dim=2), together.flatten(2).transpose(1, 2)], dim=1)


def _grid(tokens: Tensor, num_prefix_tokens: int) -> Tensor:
    """Tokens (b, P + h * h, c) to the map (b, c, h, h), without the prefix."""
    patches = tokens[:, num_prefix_tokens:]
    side = math.isqrt(patches.shape[1])
    if side < 1 or side * side != patches.shape[1]:
        raise ModelError(
            f"{tokens.shape[1]} tokens without {num_prefix_tokens} prefix tokens are no square grid: "
            "num_prefix_tokens must count class, distillation and register tokens, and no token may be missing"
        )
    return patches.transpose(1, 2).unflatten(2, (side, side))


def _brought_to(grid: torch.Size, maps: Tensor) -> Tensor:
    if maps.shape[-2:] == grid:
        return maps
    return F.adaptive_avg_pool2d(maps.float(), (grid[0], grid[1])).to(maps.dtype)
