"""A candidate's shape trained a little further, taught by the model that it was made of."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from anyvit.data import DataSet
from anyvit.data.augmentation import Augmentation
from anyvit.data.loading import training_loader
from anyvit.data.preprocessing import Preprocessing
from anyvit.protocols import Event, Progress, Stage, silent
from anyvit.scaling.candidate import Candidate
from anyvit.scaling.shrink import lever_named
from anyvit.scaling.workshop import reshape
from anyvit.training.batch_norm import recalibrate
from anyvit.training.objectives import Distillation
from anyvit.training.recipes import RECIPES, Recipe, recipe_for
from anyvit.training.trainer import train

if TYPE_CHECKING:
    from torch import nn

CALIBRATION_BATCHES = 16
"""Batches that BatchNorms take their statistics of, where there are any."""


def tune(
    model: nn.Module,
    candidate: Candidate,
    dataset: DataSet,
    preprocessing: Preprocessing,
    *,
    seconds: float | None,
    epochs: float | None = None,
    seed: int = 0,
    folder: Path,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """The weights of a candidate's shape after more training, with the unshrunk model as its teacher.

    The levers stay on in training: it is the reduced, pruned or narrow model that learns, from the first step. Zeros of
    a pruned one stay zeros. What merges (RePaViT) is trained before it is merged, as its paper has it, and BatchNorms
    are calibrated anew.

    The same call resumes a training that was interrupted. Where `epochs` ends it, the weights follow from the seed.

    Args:
        model: The trained model that the candidate is a shape of. It is left as it is.
        candidate: Its levers; the backend does not matter.
        dataset: Its "train" split is learned, and nothing else of it is seen.
        preprocessing: That of the model.
        seconds: The time for it. Steps count, not epochs: it ends in mid-epoch, after one step at the earliest, and
            the learning rate has come down by then. None: `epochs` alone ends it.
        epochs: How often each image is seen, where the time does not end it before.
        seed: Everything random follows from it.
        folder: Keeps the checkpoints, in a folder for each candidate, until the caller removes it.
        progress: Told how far it is.

    Returns:
        The state dict of `reshape(model, candidate)`, in memory of its own: what a `Workshop` takes as tuned.

    Raises:
        Interrupted: Ctrl-C. The same call resumes.
        SettingError: The loss is no longer finite, or the folder holds another training.
    """
    recipe = tuning_recipe(preprocessing.image_size)
    training = train(
        reshape(model, _unmerged(candidate)),  # it may be views of `model`: `train` copies what it trains
        dataset,
        objective=Distillation(model),
        recipe=recipe,
        preprocessing=preprocessing,
        folder=folder / candidate.id,
        epochs=epochs,
        seconds=seconds,
        seed=seed,
        progress=lambda event: progress(_about(event, candidate)),
    )
    recalibrate(training.model, _images(dataset, preprocessing, recipe.batch_size, seed))
    if _unmerged(candidate) == candidate:
        return training.model.state_dict()
    whole = copy.deepcopy(model)
    found = whole.load_state_dict(training.model.state_dict(), strict=False)
    assert not found.unexpected_keys  # and what is missing is a classifier of scales that the candidate does not have
    return reshape(whole, candidate).state_dict()


def tuning_recipe(image_size: int) -> Recipe:
    """How a trained model of such images is trained a little further: as it was, at a quarter of the rate.

    Crops are for photographs alone: of small images they cost more than so short a time brings. All layers were cut
    alike, so all learn alike; nothing is dropped, decayed or smoothed on top of what the teacher says.
    """
    name = recipe_for(image_size, trained=False)
    base = RECIPES["fine-tune" if name == "scratch" else name]
    return replace(base, lr=base.lr / 4, warmup=0.1, layer_decay=1.0, weight_decay=0.0, drop_path=0.0, smoothing=0.0)


def _unmerged(candidate: Candidate) -> Candidate:
    """The candidate without what merges: its trainable form."""
    merging = {step.name for step in candidate.active if lever_named(step.name).stage is Stage.MERGE}
    return replace(candidate, levers=tuple(step for step in candidate.levers if step.name not in merging))


def _about(event: Event, candidate: Candidate) -> Event:
    return replace(event, stage="tune", message=candidate.id)


def _images(dataset: DataSet, preprocessing: Preprocessing, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of training images as evaluation sees them, in a random order."""
    split = dataset.splits["train"]
    loader = training_loader(
        split, preprocessing, Augmentation(), batch_size=batch_size, seed=seed, position=lambda: 0, workers=0
    )
    return (images for images, _ in islice(loader, CALIBRATION_BATCHES))
