"""From an image to what the model sees: one rule, which Pillow and NumPy repeat anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anyvit.errors import SettingError

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
MOST_RESIZED = 1 << 26
"""Pixels of a whole resized image, of which the centre is kept then."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize, crop the centre, normalize.

    The shorter side becomes `round(image_size / crop_ratio)` by Pillow's `resize` with the named filter, the longer one
    `round(longer * new_shorter / shorter)`; the square of `image_size` that starts at `(length - image_size) // 2` is
    kept; then `(pixels / 255 - mean) / std` in float32.

    Raises:
        SettingError: a value outside its range.
    """

    image_size: int
    crop_ratio: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise SettingError(f"image_size {self.image_size} is too small: 1 is the least.")
        if not 0 < self.crop_ratio <= 1:
            raise SettingError(f"crop_ratio {self.crop_ratio:g} is outside (0, 1].")
        if self.interpolation not in INTERPOLATIONS:
            raise SettingError(f"unknown interpolation {self.interpolation!r}. Known: {', '.join(INTERPOLATIONS)}.")
        if min(self.std) <= 0:
            raise SettingError(f"std {self.std} must be positive in each channel.")

    def __call__(self, image: Image.Image) -> Tensor:
        """The float32 tensor (3, S, S) of an upright RGB image."""
        return self.normalize(self.crop(image))

    def crop(self, image: Image.Image) -> Image.Image:
        """The centre of `image` at the model's size, S x S."""
        side, shorter, kept = round(self.image_size / self.crop_ratio), min(image.size), self.image_size
        width, height = (round(length * side / shorter) for length in image.size)
        left, top = (width - kept) // 2, (height - kept) // 2
        filter = Image.Resampling[self.interpolation.upper()]
        if (
            width * height > MOST_RESIZED
        ):  # of a long and thin image what is kept alone is made: the same but for rounding
            across, down = image.width / width, image.height / height
            box = (left * across, top * down, (left + kept) * across, (top + kept) * down)
            return image.resize((kept, kept), filter, box)
        if image.size != (width, height):
            image = image.resize((width, height), filter)
        return image.crop((left, top, left + kept, top + kept))

    def normalize(self, image: Image.Image) -> Tensor:
        """The float32 tensor (3, H, W) of an RGB image, normalized."""
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        pixels = (np.asarray(image, dtype=np.float32) / np.float32(255) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def normalize_batch(self, pixels: Tensor) -> Tensor:
        """The same for pixels as tensors, uint8 (B, 3, H, W)."""
        mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels.to(torch.float32) / 255 - mean) / std

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
