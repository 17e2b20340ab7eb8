"""What training does to an image before the model sees it: torchvision's transforms on Pillow images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import SettingError


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How images are varied in training. All randomness is PyTorch's.

    Attributes:
        crop_scale: Share of the image's area that a random crop keeps, (least, most) in (0, 1]; None keeps the centre
            that evaluation sees.
        mirror: Flip one image in two from left to right.
        rand_augment: Magnitude of two random operations (RandAugment, arXiv 1909.13719), 0..30; 0 is off.
        erasing: Chance that a rectangle is erased (arXiv 1708.04896), in [0, 1]; the erased part shows the mean colour.
        padding_crop: Shift by up to so many pixels, black coming in from outside.

    Raises:
        SettingError: a value outside its range.
    """

    crop_scale: tuple[float, float] | None = None
    mirror: bool = False
    rand_augment: int = 0
    erasing: float = 0.0
    padding_crop: int = 0

    def __post_init__(self) -> None:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise SettingError(f"crop_scale {self.crop_scale} must hold two rising values in (0, 1].")
        if not 0 <= self.rand_augment <= 30:
            raise SettingError(f"rand_augment {self.rand_augment} is outside 0..30.")
        if not 0 <= self.erasing <= 1:
            raise SettingError(f"erasing {self.erasing:g} is outside [0, 1].")
        if self.padding_crop < 0:
            raise SettingError(f"padding_crop {self.padding_crop} is negative.")

    def transform(self, preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
        """The function from an upright RGB image to the float32 tensor (3, S, S), drawing from PyTorch's generator."""
        size = preprocessing.image_size
        steps: list[Callable] = [preprocessing.crop]
        if self.crop_scale is not None:
            steps = [
                v2.RandomResizedCrop(
                    size, self.crop_scale, interpolation=InterpolationMode(preprocessing.interpolation)
                )
            ]
        if self.padding_crop:
            steps.append(v2.RandomCrop(size, padding=self.padding_crop))
        if self.mirror:
            steps.append(v2.RandomHorizontalFlip())
        if self.rand_augment:
            steps.append(v2.RandAugment(magnitude=self.rand_augment))
        steps.append(preprocessing.normalize)
        if self.erasing:
            steps.append(v2.RandomErasing(self.erasing))
        return v2.Compose(steps)


def seeded(transform: Callable[[Image.Image], Tensor], image: Image.Image, seed: int) -> Tensor:
    """`transform(image)` with PyTorch's generator at `seed`; the generator is left as it was found."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return transform(image)
