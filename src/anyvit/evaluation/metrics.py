"""What a classifier's answers are worth, as plain data for the bundle and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anyvit.errors import DataError, ModelError, SettingError
from anyvit.evaluation.intervals import wilson

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How one class fared."""

    recall: float | None  # None where no image is of this class
    precision: float | None  # None where no image was taken for this class
    count: int


@dataclass(frozen=True, slots=True)
class Scores:
    """The figures of a set of answers; shares are of 1."""

    accuracy: float
    interval: tuple[float, float]  # 95 %, Wilson
    count: int
    balanced_accuracy: float  # mean recall of the classes that have images
    calibration_error: float  # expected, over 15 bins of confidence
    classes: Mapping[str, ClassScore]
    confusion: tuple[tuple[int, ...], ...]  # a row a true class, a column a predicted one

    @classmethod
    def of(cls, labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]) -> Scores:
        """Score answers.

        Args:
            labels: The true classes (N,), as places in `classes`.
            probabilities: (N, K), rows that sum to 1; the first of the largest is the answer.
            classes: The K names.

        Raises:
            DataError: No labels, or one that is no place in `classes`.
            ModelError: Probabilities that are NaN, negative, or do not sum to 1.
            SettingError: Shapes that do not fit, or a name that stands for two classes.
        """
        truth, shares = _checked(labels, probabilities, classes)
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

        answers = shares.argmax(axis=1)
        places = np.arange(len(classes))
        precision, recall, _, count = precision_recall_fscore_support(
            truth, answers, labels=places, zero_division=np.nan
        )
        correct = int((answers == truth).sum())
        return cls(
            accuracy=correct / len(truth),
            interval=wilson(correct, len(truth)),
            count=len(truth),
            balanced_accuracy=float(np.nanmean(recall)),
            calibration_error=_calibration_error(truth, shares),
            classes={
                name: ClassScore(_share(recall[k]), _share(precision[k]), int(count[k]))
                for k, name in enumerate(classes)
            },
            confusion=tuple(map(tuple, confusion_matrix(truth, answers, labels=places).tolist())),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _checked(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    truth, shares = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if len(set(classes)) < len(classes):
        raise SettingError(f"two classes have the same name: {', '.join(classes)}")
    if truth.ndim != 1 or shares.shape != (len(truth), len(classes)):
        raise SettingError(
            f"labels {truth.shape} and probabilities {shares.shape} do not fit: "
            f"(N,) and (N, {len(classes)}) are needed for {len(classes)} classes"
        )
    if not len(truth):
        raise DataError("there are no labelled images to score")
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= len(classes):
        raise DataError(
            f"labels must be whole numbers from 0 to {len(classes) - 1}, not {truth.min()} to {truth.max()}"
        )
    broken = ~np.isfinite(shares).all(axis=1)
    if broken.any():
        raise ModelError(f"the model answers NaN or infinity for {broken.sum()} of {len(truth)} images")
    if shares.min() < -1e-6 or np.abs(shares.sum(axis=1) - 1).max() > 0.02:
        raise ModelError("the model's answers are no probabilities: each row must be 0 or above and sum to 1")
    return truth.astype(np.int64), shares


def _calibration_error(truth: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    error = multiclass_calibration_error(
        torch.from_numpy(shares.clip(0, 1)),
        torch.from_numpy(truth),
        num_classes=shares.shape[1],
        n_bins=CALIBRATION_BINS,
    )
    return float(error)


def _share(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
