"""How a model is trained: everything that is a number, by name or from a file."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyvit.data.augmentation import Augmentation
from anyvit.errors import SettingError, unknown

PRECISIONS = ("auto", "float32", "bfloat16")


def _within(low: float, high: float) -> Any:
    return field(metadata={"range": (low, high)})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """AdamW with warm-up and cosine, and what keeps the model from overfitting.

    Raises:
        SettingError: A value of the wrong type or outside its range.
    """

    epochs: float = _within(1e-3, 1e5)  # passes over the images, where the caller names neither epochs nor time
    batch_size: int = _within(1, 65536)
    lr: float = _within(1e-9, 10)  # at the peak, for this batch size
    final_lr: float = _within(0, 1)  # at the end, as a share of the peak
    warmup: float = _within(0, 0.9)  # the share of the run over which the rate rises
    weight_decay: float = _within(0, 10)
    layer_decay: float = _within(0.1, 1)  # the rate of a block, as a share of that of the block after it
    clip: float = _within(1e-3, 1e6)  # largest norm of the gradient
    smoothing: float = _within(0, 0.9)  # the share of a label that is spread over all classes
    mixing: float = _within(0, 1)  # the share of batches that are mixed, by mixup or CutMix
    mixup: float = _within(0, 10)  # alpha; 0 is off
    cutmix: float = _within(0, 10)  # alpha; 0 is off
    drop_path: float = _within(0, 0.9)  # how often the last block is skipped
    ema_decay: float = _within(0, 0.999999)  # at most: the average covers no more than a tenth of the run so far
    crop_scale: tuple[float, float] | None  # the area of a random crop, least and most; None: no such crop
    padding_crop: int = _within(0, 64)  # pixels that an image is shifted by, at most
    rand_augment: int = _within(0, 30)  # magnitude; 0 is off
    erasing: float = _within(0, 1)  # how often a rectangle is blanked
    precision: str  # float32, bfloat16, or auto: measured when the run begins
    threads: int = _within(0, 4096)  # of PyTorch on the CPU; 0: measured when the run begins

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name == "crop_scale":
                object.__setattr__(self, "crop_scale", _crop_scale(value))
            elif item.name == "precision":
                if value not in PRECISIONS:
                    raise SettingError(unknown("precision", str(value), PRECISIONS))
            else:
                _check(item.name, value, item.metadata["range"], whole=item.type == "int")

    def augmentation(self, *, mirrored: bool) -> Augmentation:
        """What is done to each training image; `mirrored` says that a mirror image keeps its label."""
        return Augmentation(
            crop_scale=self.crop_scale,
            mirror=mirrored,
            rand_augment=self.rand_augment,
            erasing=self.erasing,
            padding_crop=self.padding_crop,
        )

    @classmethod
    def from_file(cls, path: Path, base: Recipe | None = None) -> Recipe:
        """The recipe `base` with what a JSON or TOML file changes; `base = "NAME"` in the file names another base.

        Raises:
            SettingError: The file cannot be read, or names a key or value that a recipe does not have.
        """
        changes = _read(path)
        try:
            if "base" in changes:
                base = _by_name(changes.pop("base"))
            known = [item.name for item in dataclasses.fields(cls)]
            for key in changes:
                if key not in known:
                    raise SettingError(unknown("key", key, ["base", *known]))
            return dataclasses.replace(base or RECIPES["scratch-small"], **changes)
        except SettingError as error:
            raise SettingError(f"{path}: {error}") from None


def _check(name: str, value: object, allowed: tuple[float, float], *, whole: bool) -> None:
    low, high = allowed
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # type: ignore[operator]
        kind = "a whole number" if whole else "a number"
        raise SettingError(f"{name} must be {kind} from {low:g} to {high:g}, not {value!r}.")


def _crop_scale(value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    match value:
        case [int() | float() as least, int() | float() as most] if 0 < least <= most <= 1:
            return float(least), float(most)
    raise SettingError(f"crop_scale must be two numbers, 0 < least <= most <= 1, not {value!r}.")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        changes = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise SettingError(f"the recipe {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise SettingError(f"the recipe {path} is not valid {kind}: {error}.") from None
    if not isinstance(changes, dict):
        raise SettingError(f'the recipe {path} must hold names and values, like {{"lr": 0.001}}.')
    return changes


_SCRATCH_SMALL = Recipe(
    epochs=50,
    batch_size=64,
    lr=1e-3,
    final_lr=0.01,
    warmup=0.05,
    weight_decay=0.05,
    layer_decay=1.0,
    clip=1.0,
    smoothing=0.1,
    mixing=0.5,
    mixup=0.2,
    cutmix=1.0,
    drop_path=0.05,
    ema_decay=0.999,
    crop_scale=None,
    padding_crop=4,
    rand_augment=5,
    erasing=0.0,
    precision="auto",
    threads=0,
)

RECIPES: Mapping[str, Recipe] = {
    "scratch-tiny": dataclasses.replace(
        _SCRATCH_SMALL,
        epochs=60,
        lr=2e-3,
        mixing=1.0,  # without, it learns the few images by heart
        mixup=0.8,
        cutmix=0.0,
        drop_path=0.0,
        padding_crop=0,  # a pixel is much of so small an image
        rand_augment=0,
        precision="float32",  # so small a model gains nothing from bfloat16, and little from threads:
        threads=1,  # without a choice that rests on a measurement, a seed gives the same weights on every run
    ),
    "scratch-small": _SCRATCH_SMALL,
    "scratch": dataclasses.replace(
        _SCRATCH_SMALL,
        epochs=100,
        batch_size=32,
        lr=5e-4,
        mixup=0.8,
        drop_path=0.1,
        ema_decay=0.9998,
        crop_scale=(0.2, 1.0),
        padding_crop=0,
        rand_augment=9,
        erasing=0.25,
    ),
    "fine-tune": dataclasses.replace(
        _SCRATCH_SMALL,
        epochs=15,
        batch_size=32,
        lr=2e-4,
        warmup=0.1,
        layer_decay=0.75,
        mixing=0.3,
        mixup=0.2,
        drop_path=0.1,
        crop_scale=(0.4, 1.0),
        padding_crop=0,
        rand_augment=7,
    ),
}
"""From scratch for images up to 16 px, up to 96 px and photographs; and from trained weights."""


def recipe_for(image_size: int, *, trained: bool) -> str:
    """The name of the recipe for images of `image_size` pixels and a model with trained weights or without."""
    if trained:
        return "fine-tune"
    return "scratch-tiny" if image_size <= 16 else "scratch-small" if image_size <= 96 else "scratch"


def find_recipe(text: str, base: Recipe | None = None) -> Recipe:
    """A recipe by name, or from the JSON or TOML file that `text` names.

    Raises:
        SettingError: There is neither such a recipe nor such a file.
    """
    if Path(text).suffix in (".json", ".toml"):
        return Recipe.from_file(Path(text), base)
    return _by_name(text)


def _by_name(name: object) -> Recipe:
    if name not in RECIPES:
        raise SettingError(unknown("recipe", str(name), RECIPES) + " A file ends in .json or .toml.")
    return RECIPES[str(name)]
