"""ED-ViT: one trained ViT becomes several small ones, one a group of classes, and a head that fuses what they see.

Paper:    Liu, Song, Li, Sun, Lan, Liu, Jiang, Li 2024, arXiv 2410.11650; no code was published
Differs:  the head is trained with sub-models missing at random, so that a lost device costs little accuracy
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyvit.data import DataSet, Split
from anyvit.data.loading import evaluation_batches
from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import DataError, SettingError
from anyvit.protocols import Event, Progress, silent
from anyvit.scaling.spread.classes import Groups
from anyvit.scaling.spread.fusion import Fusion, train_fusion, without_missing
from anyvit.scaling.spread.submodel import SubModel, make_submodel
from anyvit.scaling.spread.vote import Missing, accuracy_by_missing
from anyvit.training.recipes import Recipe


@dataclass(frozen=True)
class ClassSplit:
    """A ViT split by classes.

    Attributes:
        submodels: In the order of their groups of classes.
        fusion: From their features, in that order, to logits of all classes.
        missing: The accuracy on the validation split with 0, 1, … sub-models missing.
    """

    submodels: tuple[SubModel, ...]
    fusion: Fusion
    missing: tuple[Missing, ...]

    def __call__(self, images: Tensor, absent: Sequence[int] = ()) -> Tensor:
        """Probabilities (B, C) of preprocessed images, without the sub-models that are absent."""
        with torch.inference_mode():
            features = [
                None if index in absent else submodel.features(images) for index, submodel in enumerate(self.submodels)
            ]
            return self.fusion(features).softmax(dim=1)

    def to_json(self) -> dict[str, Any]:
        """All but the weights."""
        missing = [{name: getattr(each, name) for name in each.__slots__} for each in self.missing]
        return {"submodels": [submodel.to_json() for submodel in self.submodels], "accuracy_by_missing": missing}


def split_by_classes(
    model: nn.Module,
    data: DataSet,
    groups: Groups,
    heads: Sequence[int],
    *,
    preprocessing: Preprocessing,
    recipe: Recipe,
    folder: Path,
    epochs: float | None = None,
    images: int = 256,
    other_class: bool = True,
    fusion_epochs: float = 15,
    missing: float = 0.2,
    seed: int = 0,
    progress: Progress = silent,
) -> ClassSplit:
    """Prune and train a sub-model a group, then the head that fuses them. The same call on the same folder resumes.

    Args:
        model: A plain ViT that tells all classes of `data`. It is left as it is.
        data: What it was trained on; "val" scores the result.
        groups: By sub-model, its classes; `deal_classes` makes them.
        heads: By sub-model, the heads that it keeps; `plan_classes` finds them.
        preprocessing: What the model sees of an image.
        recipe: How the sub-models are trained.
        folder: Keeps a folder a sub-model: what was decided, checkpoints and logs.
        epochs: Of the sub-models. None: what the recipe says.
        images: By which each sub-model is pruned.
        other_class: Sub-models also learn to tell images of other classes.
        fusion_epochs: Of the head.
        missing: How often the head misses each sub-model in training.
        seed: Everything random follows from it.
        progress: Called with news.

    Raises:
        DataError: A group without training images, or no validation images.
        ModelError: The model cannot be cut.
        SettingError: A setting outside its range, or `folder` holds another split.
        Interrupted: Ctrl-C in training; the same call resumes.
    """
    _check(data, groups, heads)
    submodels = []
    for index, (classes, kept) in enumerate(zip(groups, heads, strict=True)):
        names = ", ".join(data.classes[label] for label in classes)
        progress(Event("spread", f"sub-model {index + 1} of {len(groups)}: {kept} heads for {names}"))
        submodel = make_submodel(
            model,
            data,
            classes,
            kept,
            preprocessing=preprocessing,
            recipe=recipe,
            folder=folder / f"submodel-{index}",
            epochs=epochs,
            images=images,
            other_class=other_class,
            seed=seed,
            progress=progress,
        )
        submodels.append(submodel)
        words = f"{submodel.foreign} images of each other class were among its own" if other_class else "no other class"
        progress(Event("spread", f"accuracy on its own classes {submodel.accuracy:.1%}; {words}"))
    seen = partial(_features, submodels, preprocessing=preprocessing, progress=progress)
    widths = [submodel.model.num_features for submodel in submodels]
    fusion = train_fusion(
        *seen(data.splits["train"]),
        widths,
        len(data.classes),
        epochs=fusion_epochs,
        missing=missing,
        seed=seed,
        progress=progress,
    )
    return ClassSplit(tuple(submodels), fusion, _accuracies(fusion, *seen(data.splits["val"]), seed=seed))


def _check(data: DataSet, groups: Groups, heads: Sequence[int]) -> None:
    dealt = sorted(label for group in groups for label in group)
    if dealt != list(range(len(data.classes))) or not all(groups):
        raise SettingError(f"each of the {len(data.classes)} classes belongs to exactly one group: got {groups}")
    if len(heads) != len(groups):
        raise SettingError(f"each of {len(groups)} sub-models keeps a number of heads: got {list(heads)}")
    if not len(data.splits["val"]):
        raise DataError(f"{data.source} has no validation images, which the accuracy of the parts is measured on.")


@torch.no_grad()
def _features(
    submodels: Sequence[SubModel], split: Split, *, preprocessing: Preprocessing, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Features (B, D) of all images of a split, all sub-models side by side, and the labels (B,)."""
    features, labels, done = [], [], 0
    for images, truth in evaluation_batches(split, preprocessing):
        features.append(torch.cat([submodel.features(images) for submodel in submodels], dim=1))
        labels.append(truth)
        done += len(truth)
        progress(Event("features", done=done / len(split)))
    return torch.cat(features), torch.cat(labels)


@torch.no_grad()
def _accuracies(fusion: Fusion, features: Tensor, labels: Tensor, *, seed: int) -> tuple[Missing, ...]:
    def score(kept: Sequence[int]) -> float:
        present = torch.zeros(len(fusion.widths), dtype=torch.bool)
        present[list(kept)] = True
        answers = fusion.fuse(without_missing(features, fusion.widths, present)).argmax(1)
        return (answers == labels).double().mean().item()

    return accuracy_by_missing(len(fusion.widths), score, seed=seed)
