"""What a shape is worth on the images at hand: a short training of each, all alike, and the accuracy after it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from anyvit.costs.counts import Specification
from anyvit.data import DataSet, Split
from anyvit.data.preprocessing import Preprocessing
from anyvit.evaluation.metrics import Scores
from anyvit.files import write_text
from anyvit.protocols import Event, Progress, silent
from anyvit.scaling.design.shape import PLAIN, Worth, form_of, name_of
from anyvit.scaling.pricing import Conditions
from anyvit.scaling.scoring import scores_of
from anyvit.scaling.workshop import Workshop
from anyvit.training.objectives import Classification
from anyvit.training.recipes import RECIPES, Recipe, recipe_for
from anyvit.training.trainer import train


@dataclass
class ShortTraining:
    """Trains shapes briefly, each from the same seed for as many epochs, and remembers what they were worth.

    A shape that was trained before is not trained again, and an interrupted training is resumed: what is known lies in
    `folder`, in a file by shape.

    Args:
        dataset: Its "train" split is learned, its "val" split judges.
        folder: Of the trainings.
        epochs: How often each image is seen.
        seeds: Each is a training; the accuracy is their mean.
        images: Validation images, at most.
        recipe: How; None: by the size of the data's images, whatever a shape sees of them.
        progress: Told how far a training is.
    """

    dataset: DataSet
    folder: Path
    epochs: float
    seeds: Sequence[int] = (0,)
    images: int = 5000
    recipe: Recipe | None = None
    progress: Progress = silent
    _judges: Split = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._judges = self.dataset.splits["val"].sample(self.images)

    def __call__(self, spec: Specification) -> Worth:
        """The accuracy of a shape.

        Raises:
            Interrupted: Ctrl-C. The same call resumes.
            SettingError: The training diverged.
        """
        shares = [self._trained(replace(spec, num_classes=len(self.dataset.classes)), seed) for seed in self.seeds]
        mean = float(np.mean(shares))
        over_images = mean * (1 - mean) / len(self._judges)
        over_seeds = float(np.var(shares, ddof=1)) / len(shares) if len(shares) > 1 else 0.0
        return Worth(mean, float(np.sqrt(over_images + over_seeds)))

    def _trained(self, spec: Specification, seed: int) -> float:
        name = f"{name_of(spec)}-epochs{self.epochs:g}-seed{seed}"
        known = self.folder / f"{name}.json"
        if not known.exists():
            share = self._train(spec, seed, self.folder / name)
            write_text(known, json.dumps({"accuracy": share, "shape": asdict(spec)}) + "\n")
            shutil.rmtree(self.folder / name)
        return float(json.loads(known.read_text())["accuracy"])

    def _train(self, spec: Specification, seed: int, folder: Path) -> float:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = form_of(spec).build()
        preprocessing = Preprocessing(spec.image_size)
        training = train(
            model,
            self.dataset,
            objective=Classification(),
            recipe=self.recipe or RECIPES[recipe_for(self.dataset.image_size, trained=False)],
            preprocessing=preprocessing,
            folder=folder,
            epochs=self.epochs,
            seed=seed,
            progress=lambda event: self.progress(Event("design", name_of(spec), event.done, event.seconds_left)),
        )
        runner = Workshop(training.model, Conditions(spec.image_size).example()).runner(PLAIN)
        scores: Scores = scores_of(runner, self._judges, preprocessing, self.dataset.classes)
        return scores.accuracy
