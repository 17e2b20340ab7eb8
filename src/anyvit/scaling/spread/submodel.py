"""A sub-model: a ViT pruned for some of the classes, then trained to tell them from each other and from all others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anyvit.data import DataSet, Split
from anyvit.data.images import Selection
from anyvit.data.loading import evaluation_batches
from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import DataError, SettingError
from anyvit.evaluation.metrics import Scores
from anyvit.models.layers.indexed import Kept, sliced
from anyvit.protocols import Progress, silent
from anyvit.scaling.scoring import scores_of
from anyvit.scaling.spread.pruning import prune
from anyvit.training.checkpoint import recall
from anyvit.training.objectives.classification import Classification
from anyvit.training.recipes import Recipe
from anyvit.training.trainer import train

OTHER = "other"
"""The name of output 0: an image of none of the sub-model's classes."""


@dataclass(frozen=True)
class SubModel:
    """A sub-model, trained.

    Attributes:
        model: An ordinary timm ViT, in eval mode, with an output for each class, after one for all others if there is.
        classes: Its classes, as ascending positions among all.
        kept: What it keeps of the model that it comes from.
        other_class: Whether output 0 stands for all other classes.
        foreign: Images of each other class that it was trained with.
        accuracy: On the validation images of its classes.
    """

    model: VisionTransformer
    classes: tuple[int, ...]
    kept: Kept
    other_class: bool
    foreign: int
    accuracy: float

    def features(self, images: Tensor) -> Tensor:
        """What it sends (B, width): the pooled token behind the last norm."""
        return features_of(self.model, images)

    def to_json(self) -> dict[str, Any]:
        """All but the weights. `empty_submodel` makes the form again, from the model that it comes from."""
        return {
            "classes": list(self.classes),
            "kept": self.kept.to_json(),
            "other_class": self.other_class,
            "foreign": self.foreign,
            "accuracy": self.accuracy,
        }


def features_of(model: VisionTransformer, images: Tensor) -> Tensor:
    """The numbers (B, width) that `model` would classify by."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def empty_submodel(model: nn.Module, kept: Kept, outputs: int) -> VisionTransformer:
    """A sub-model of `model` with a fresh classifier. Of a model on the meta device: a form to load weights into."""
    smaller = sliced(model, kept)
    smaller.reset_classifier(outputs)
    return smaller


def make_submodel(
    model: nn.Module,
    data: DataSet,
    classes: Sequence[int],
    heads: int,
    *,
    preprocessing: Preprocessing,
    recipe: Recipe,
    folder: Path,
    epochs: float | None = None,
    images: int = 256,
    other_class: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> SubModel:
    """Prune a plain ViT for some classes and train it again. The same call on the same folder resumes.

    Args:
        model: A plain ViT that tells all classes of `data`. It is left as it is.
        data: Its "train" split is pruned by and learned, its "val" split scores.
        classes: Positions in `data.classes`.
        heads: That stay, of each block.
        preprocessing: What the model sees of an image.
        recipe: How it is trained.
        folder: Keeps what was decided, checkpoints and logs.
        epochs: How often each image is seen. None: what the recipe says.
        images: To prune by, drawn from those of the classes.
        other_class: Train with a few images of the other classes, as one class more.
        seed: Everything random follows from it.
        progress: Called with news.

    Raises:
        DataError: No training or validation images of the classes.
        ModelError, SettingError: As `prune` and `train` say; or one class and no other.
        Interrupted: Ctrl-C in training; the same call resumes.
    """
    own, foreign = data_of(data, classes, other_class=other_class, seed=seed)
    sample = replace(data, splits={"train": _sample(data, classes, images, seed)})
    settings = {"model": _digest(model), "images": sample.digest("train")[:12], "heads": heads}
    decided = folder / "pruning"
    decided.mkdir(parents=True, exist_ok=True)

    def decide() -> dict[str, Any]:
        batches = evaluation_batches(sample.splits["train"], preprocessing)
        seen = torch.cat([pictures for pictures, _ in batches])
        return prune(model, seen, heads, progress=progress).kept.to_json()

    kept = Kept.from_json(recall(decided, settings, decide))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        smaller = empty_submodel(model, kept, len(own.classes))
    training = train(
        smaller,
        own,
        objective=Classification(),
        recipe=recipe,
        preprocessing=preprocessing,
        folder=folder / "training",
        epochs=epochs,
        seed=seed,
        progress=progress,
    )
    trained = training.model
    assert isinstance(trained, VisionTransformer)
    accuracy = _scores(trained, own, preprocessing).accuracy
    return SubModel(trained, tuple(sorted(classes)), kept, other_class, foreign, accuracy)


def foreign_per_class(images: int, num_classes: int, classes: int) -> int:
    """How many images of each other class a sub-model of `classes` is trained with: about a tenth of a class's."""
    return max(0, images // (10 * num_classes) - classes)


def data_of(data: DataSet, classes: Sequence[int], *, other_class: bool = True, seed: int = 0) -> tuple[DataSet, int]:
    """The data set of a sub-model, and how many images of each other class are in it.

    Its validation split holds images of its own classes only.

    Raises:
        DataError: No training or validation images of the classes.
        SettingError: A single class and no other: there is nothing to tell apart.
    """
    if len(classes) + other_class < 2:
        raise SettingError(
            f"a sub-model of the one class {data.classes[classes[0]]} has nothing to tell it from: keep the other class"
        )
    own = sorted(classes)
    label_of = np.zeros(len(data.classes), dtype=np.int64)
    label_of[own] = np.arange(len(own)) + other_class
    splits = {name: _select(split, np.flatnonzero(np.isin(split.labels, own))) for name, split in data.splits.items()}
    for name in ("train", "val"):
        _refuse_empty(name, splits[name], data, own)
    foreign = foreign_per_class(len(data.splits["train"]), len(data.classes), len(own)) if other_class else 0
    train, draw = data.splits["train"], np.random.default_rng((seed, *own))
    chosen = [np.flatnonzero(np.isin(train.labels, own))]
    for label in sorted(set(range(len(data.classes))) - set(own)):
        of_label = np.flatnonzero(train.labels == label)
        chosen.append(draw.choice(of_label, min(foreign, len(of_label)), replace=False))
    splits["train"] = _select(train, np.sort(np.concatenate(chosen)))
    weights = data.class_weights
    if weights is not None:
        weights = np.concatenate([np.ones(int(other_class), dtype=weights.dtype), weights[own]])
    names = ((OTHER,) if other_class else ()) + tuple(data.classes[label] for label in own)
    splits = {name: Split(split.images, label_of[split.labels]) for name, split in splits.items()}
    return replace(data, classes=names, splits=splits, class_weights=weights, notes=()), foreign


def _sample(data: DataSet, classes: Sequence[int], count: int, seed: int) -> Split:
    train = data.splits["train"]
    found = np.flatnonzero(np.isin(train.labels, classes))
    draw = np.random.default_rng((seed, *classes))
    return _select(train, np.sort(draw.choice(found, min(count, len(found)), replace=False)))


def _select(split: Split, positions: np.ndarray) -> Split:
    hashes = np.array([split.images.content_hash(int(place)) for place in positions], dtype=np.uint64)
    return Split(Selection(split.images, positions, hashes), split.labels[positions])


def _refuse_empty(name: str, split: Split, data: DataSet, classes: Sequence[int]) -> None:
    if not len(split):
        names = ", ".join(data.classes[label] for label in classes)
        raise DataError(f"{data.source} has no {name} images of {names}: put them with other classes, or add some.")


def _scores(model: VisionTransformer, data: DataSet, preprocessing: Preprocessing) -> Scores:
    with torch.inference_mode():
        return scores_of(lambda images: model(images).softmax(1), data.splits["val"], preprocessing, data.classes)


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
