"""Does a model still answer the same after its export? Asked from image file to label."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from anyvit.data import Split
from anyvit.data.decode import decode
from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy import standalone
from anyvit.errors import ExportError

ENOUGH = 200
"""Images that an export is verified on, where there are as many."""

LIMIT = 1e-3
"""How far a logit may be off, as a share of the largest one (of 1, where all are smaller). Within it, labels can only
differ where two classes are as good as tied."""

_BATCH = 16
_LEAST_PROBABILITY = 1e-30  # what is below has no exact logarithm in float32


@dataclass(frozen=True, slots=True)
class Verification:
    """How an exported model answers, against the one it came from.

    Attributes:
        images: How many images both were asked.
        agreement: The share of them with the same label.
        accuracy: That of the exported model on them.
        accuracy_before: That of the model it came from.
        difference: The largest difference of a logit.
        scale: The largest logit, by which the difference is judged; 1 where all are smaller.
        finite: Whether every probability is a number.
    """

    images: int
    agreement: float
    accuracy: float
    accuracy_before: float
    difference: float
    scale: float
    finite: bool

    @property
    def holds(self) -> bool:
        return self.finite and self.difference <= LIMIT * self.scale

    def __str__(self) -> str:
        return (
            f"{self.agreement:.2%} of {self.images} labels agree, accuracy {self.accuracy:.2%} "
            f"({self.accuracy_before:.2%} before), largest logit difference {self.difference:.2g} "
            f"(limit {LIMIT * self.scale:.2g}){'' if self.finite else ', and some probabilities are not numbers'}"
        )


def verify(
    path: Path, model: nn.Module, classes: Sequence[str], preprocessing: Preprocessing, split: Split
) -> Verification:
    """Ask an exported model and the one it came from about the same image files.

    Args:
        path: The exported model, in the form that `standalone.open_model` takes.
        model: From preprocessed images to probabilities.
        classes: Names of the classes.
        preprocessing: From image to input.
        split: Real images; up to `ENOUGH`, evenly spread.

    Raises:
        ExportError: The exported model carries other labels than `classes`.
    """
    run, labels, rule = standalone.open_model(str(path))
    if labels != list(classes):
        raise ExportError(f"{path} carries other labels than the bundle: {labels[:5]} …, not {list(classes)[:5]} ….")
    chosen = np.linspace(0, len(split) - 1, min(ENOUGH, len(split))).round().astype(np.int64)

    @torch.inference_mode()
    def before(files: Sequence[Path]) -> np.ndarray:
        return model(torch.stack([preprocessing(decode(file)) for file in files])).numpy()

    def after(files: Sequence[Path]) -> np.ndarray:
        return run(np.stack([standalone.prepare(standalone.read(str(file)), rule) for file in files]))

    with tempfile.TemporaryDirectory(prefix="anyvit-") as folder:
        files = [_as_file(split.images.load(int(index)), Path(folder, f"{index}.png")) for index in chosen]
        old, new = _in_batches(before, files), _in_batches(after, files)
    return _compare(old, new, split.labels[chosen])


def _as_file(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


def _in_batches(answer: Callable[[Sequence[Path]], np.ndarray], files: Sequence[Path]) -> np.ndarray:
    return np.concatenate([answer(files[start : start + _BATCH]) for start in range(0, len(files), _BATCH)])


def _compare(old: np.ndarray, new: np.ndarray, labels: np.ndarray) -> Verification:
    finite = bool(np.isfinite(new).all())
    logits, others = _logits(old), _logits(np.nan_to_num(new))
    return Verification(
        images=len(labels),
        agreement=float((old.argmax(1) == new.argmax(1)).mean()),
        accuracy=float((new.argmax(1) == labels).mean()),
        accuracy_before=float((old.argmax(1) == labels).mean()),
        difference=float(np.abs(logits - others).max()),
        scale=max(1.0, float(np.abs(logits).max())),
        finite=finite,
    )


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Logits (B, K) that have these probabilities, 0 on average over the classes of an image."""
    logarithms = np.log(np.maximum(probabilities, _LEAST_PROBABILITY, dtype=np.float64))
    return logarithms - logarithms.mean(axis=1, keepdims=True)
