"""What candidates are worth on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from anyvit.data import Split
from anyvit.data.loading import evaluation_batches
from anyvit.data.preprocessing import Preprocessing
from anyvit.evaluation.metrics import Scores
from anyvit.protocols import Event, Progress, Runner, silent
from anyvit.scaling.candidate import Result
from anyvit.scaling.workshop import Workshop


def score(
    workshop: Workshop,
    results: Sequence[Result],
    split: Split,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    progress: Progress = silent,
) -> list[Result]:
    """The results with their accuracy on `split`."""
    scored = []
    for number, result in enumerate(results):
        progress(Event("score", result.id, done=number / len(results)))
        accuracy = scores_of(workshop.runner(result.candidate), split, preprocessing, classes).accuracy
        scored.append(replace(result, accuracy=accuracy))
    return scored


def scores_of(
    runner: Runner,
    split: Split,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    *,
    batch_size: int = 64,
    progress: Callable[[float], None] = lambda done: None,
) -> Scores:
    """Scores of `runner` on every image of `split`, whose labels are positions in `classes`.

    `progress` is told the share of the images that is done.
    """
    labels, probabilities = answers_of(runner, split, preprocessing, batch_size=batch_size, progress=progress)
    return Scores.of(labels, probabilities, classes)


def answers_of(
    runner: Runner,
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The labels (N,) of a split and the probabilities (N, K) that `runner` gives for its images."""
    labels, probabilities = [], []
    for images, truth in evaluation_batches(split, preprocessing, batch_size):
        labels.append(truth)
        probabilities.append(runner(images).cpu())
        progress(min(1.0, batch_size * len(labels) / len(split)))
    return torch.cat(labels).numpy(), torch.cat(probabilities).numpy()
