"""What a model with fewer tokens still looks at: what EViT gives up is dark, what ToMe merges is of one colour."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anyvit.deploy.bundle import Bundle
from anyvit.models.layers.token_reduction import ReducedViT, Tokens
from anyvit.models.layers.tome import Matching

STAGES = 4
"""Pictures an image at most, besides the image itself: of more reductions some are left out, never first and last."""

_SIDE = 160  # pixels of a picture, about
_COLOURS = 128  # of a PNG
_DARK, _STROKE = 0.22, 118  # what is left of the light in a patch given up, and the grey of the stroke through it


@dataclass(frozen=True, slots=True)
class StagePicture:
    """An image after a reduction.

    Attributes:
        block: The block that reduced, counted from 1.
        words: What is left.
        uri: The picture, a PNG.
    """

    block: int
    words: str
    uri: str


@dataclass(frozen=True, slots=True)
class TokenPicture:
    """An image as the model sees it, cropped and resized, and after its reductions."""

    uri: str
    stages: tuple[StagePicture, ...]


class Trace(NamedTuple):
    """Where the patches of one image are after a block.

    Attributes:
        block: Counted from 1.
        merges: Whether the block merges tokens that are alike (ToMe); otherwise it gives some up (EViT).
        rows: By patch, the token it is part of now, (h, w); -1 where it was thrown away.
        given_up: By patch, whether it was thrown away or fused with whatever else did not matter, (h, w).
        tokens: How many patch tokens are left, fused ones included.
        fused: How many of them are fused ones.
    """

    block: int
    merges: bool
    rows: np.ndarray
    given_up: np.ndarray
    tokens: int
    fused: int

    @property
    def words(self) -> str:
        if self.merges:
            return f"{self.tokens} tokens of {self.rows.size} patches"
        others = f"and {self.fused} fused token{'s' * (self.fused > 1)}" if self.fused else "the others dropped"
        return f"{self.tokens - self.fused} of {self.rows.size} patches, {others}"


def token_pictures(bundle: Bundle, images: Sequence[Image.Image]) -> list[TokenPicture]:
    """What the chosen candidate does with the patches of `images`, upright and in RGB; none if it keeps them all.

    Of a cascade, it is the first part that reduces. Traced in PyTorch and float32: in another precision, a patch about
    as important as its neighbour may go in its place.
    """
    model = _reduced(bundle)
    if model is None or not images:
        return []
    preprocessing = bundle.preprocessing
    crops = [preprocessing.crop(image) for image in images]
    batch = torch.stack([preprocessing.normalize(crop) for crop in crops])
    height, width = model.patch_embed.patch_size
    traces = _traces(model, batch)
    pictures = []
    for place, crop in enumerate(crops):
        rows, columns = traces[0][place].rows.shape if traces else (1, 1)
        pixels = _fitted(crop.crop((0, 0, columns * width, rows * height)), rows, columns)
        stages = [
            StagePicture(stage[place].block, stage[place].words, _drawn(pixels, stage[place])) for stage in traces
        ]
        pictures.append(TokenPicture(_uri(pixels), tuple(stages)))
    return pictures if traces else []


def _reduced(bundle: Bundle) -> ReducedViT | None:
    """The chosen candidate as a model that can be traced, where it loses tokens."""
    for part in bundle.chosen.candidate.parts:
        model = bundle.shaped(part)
        if isinstance(model, ReducedViT):
            return model
    return None


def _traces(model: ReducedViT, batch: Tensor) -> list[list[Trace]]:
    """By reduction, of which a few are chosen, a trace for each image."""
    reductions: list[tuple[int, Tokens]] = []
    with torch.inference_mode():
        for block, tokens in enumerate(model.stages(batch), start=1):
            if len(tokens.maps) > (len(reductions[-1][1].maps) if reductions else 0):
                reductions.append((block, tokens))
    chosen = np.linspace(0, len(reductions) - 1, min(STAGES, len(reductions))).round().astype(int)
    size = model.patch_embed.dynamic_feat_size((int(batch.shape[-2]), int(batch.shape[-1])))
    return [_traces_of(block, tokens, size) for block, tokens in (reductions[place] for place in chosen)]


def _traces_of(block: int, tokens: Tokens, size: tuple[int, int]) -> list[Trace]:
    prefix, merges = tokens.num_prefix_tokens, isinstance(tokens.maps[-1], Matching)
    places, origins = tokens.places()[:, prefix:], tokens.origins()
    thrown_away = places < 0
    fused = origins.gather(1, places.clamp(min=0)) < 0  # also what ToMe merges, where it is no loss
    given_up = thrown_away if merges else thrown_away | fused
    counts = (origins[:, prefix:] < 0).sum(1).tolist()
    each = zip(places.view(-1, *size).numpy(), given_up.view(-1, *size).numpy(), counts, strict=True)
    return [Trace(block, merges, rows, dark, tokens.patches, count) for rows, dark, count in each]


def _fitted(crop: Image.Image, rows: int, columns: int) -> np.ndarray:
    """The pixels (H, W, 3) of a crop at about the size of a picture, a whole number of them a patch."""
    side = max(4, round(_SIDE / max(rows, columns)))
    size = columns * side, rows * side
    enlarged = size[0] >= crop.width
    return np.asarray(crop.resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX))


def _drawn(pixels: np.ndarray, trace: Trace) -> str:
    """The picture of an image (H, W, 3) after a reduction."""
    side = pixels.shape[0] // trace.rows.shape[0]
    up = trace.rows.repeat(side, 0).repeat(side, 1)
    dark = trace.given_up.repeat(side, 0).repeat(side, 1)
    drawn = _merged(pixels, up, side) if trace.merges else pixels.astype(np.float64)
    drawn[dark] *= _DARK
    row, column = np.indices(up.shape)
    drawn[dark & (row % side == column % side)] = _STROKE  # a dark patch of a dark image shows too, and on paper
    border = _borders(up if trace.merges else dark)
    light = drawn.mean(axis=-1, keepdims=True) > 140
    drawn = np.where(border[..., None], np.where(light, 30, 255), drawn)
    return _uri(drawn.round().astype(np.uint8))


def _merged(pixels: np.ndarray, groups: np.ndarray, side: int) -> np.ndarray:
    """Groups of several patches in their mean colour; a patch on its own stays as it is."""
    members = (groups + 1).ravel()  # from 0: those thrown away are a group to count, and drawn dark later
    count = np.bincount(members)
    sums = np.stack([np.bincount(members, weights=channel.ravel()) for channel in np.moveaxis(pixels, -1, 0)], axis=-1)
    means = sums / np.maximum(count, 1)[:, None]
    several = (count > side * side)[members].reshape(groups.shape)
    return np.where(several[..., None], means[members].reshape(pixels.shape), pixels)


def _borders(groups: np.ndarray) -> np.ndarray:
    """Where the pixel above or on the left is of another group."""
    border = np.zeros(groups.shape, dtype=bool)
    border[:, 1:] |= groups[:, 1:] != groups[:, :-1]
    border[1:] |= groups[1:] != groups[:-1]
    return border


def _uri(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).quantize(_COLOURS).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
