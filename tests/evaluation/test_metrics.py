import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyvit.errors import DataError, ModelError, SettingError
from anyvit.evaluation.intervals import wilson
from anyvit.evaluation.metrics import ClassScore, Scores

NAMES = ("cat", "dog", "owl")
LABELS = [0, 0, 0, 1]
ANSWERS = [[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.1, 0.9, 0.0]]


def test_a_class_without_images_and_without_answers():
    scores = Scores.of(LABELS, ANSWERS, NAMES)
    assert scores.accuracy == 0.75
    assert scores.interval == wilson(3, 4)
    assert scores.count == 4
    assert scores.balanced_accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert scores.classes == {
        "cat": ClassScore(pytest.approx(2 / 3), 1.0, 3),
        "dog": ClassScore(1.0, 0.5, 1),
        "owl": ClassScore(None, None, 0),
    }
    assert scores.confusion == ((2, 1, 0), (0, 1, 0), (0, 0, 0))


def test_calibration_error():
    # confidences 0.9, 0.6, 0.8, 0.9 of answers that are right, right, wrong, right: bins {0.9, 0.9}, {0.6}, {0.8}
    scores = Scores.of(LABELS, ANSWERS, NAMES)
    assert scores.calibration_error == pytest.approx((2 * 0.1 + 0.4 + 0.8) / 4, abs=1e-6)


def test_certain_and_right():
    scores = Scores.of(np.arange(3), np.eye(3), NAMES)
    assert (scores.accuracy, scores.balanced_accuracy, scores.calibration_error) == (1, 1, 0)


def test_tensors_score_as_arrays():
    of_tensors = Scores.of(torch.tensor(LABELS), torch.tensor(ANSWERS, dtype=torch.float64), NAMES)
    assert of_tensors == Scores.of(np.array(LABELS), np.array(ANSWERS), NAMES)


@st.composite
def tasks(draw):
    """Labels, probabilities and names; often without some class."""
    classes = draw(st.integers(2, 5))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=20))
    weights = draw(
        st.lists(st.lists(st.integers(0, 4), min_size=classes, max_size=classes), min_size=len(labels), max_size=20)
    )
    weights = np.array(weights[: len(labels)]) + 0.1
    return np.array(labels), weights / weights.sum(axis=1, keepdims=True), [f"class {k}" for k in range(classes)]


@settings(deadline=None)
@given(tasks())
def test_the_figures_agree_with_each_other(task):
    labels, probabilities, names = task
    scores = Scores.of(labels, probabilities, names)
    confusion = np.array(scores.confusion)
    assert confusion.sum() == scores.count == len(labels)
    assert np.trace(confusion) / len(labels) == scores.accuracy
    assert confusion.sum(axis=1).tolist() == [score.count for score in scores.classes.values()]
    recalls = [score.recall for score in scores.classes.values() if score.recall is not None]
    assert np.mean(recalls) == pytest.approx(scores.balanced_accuracy)
    assert 0 <= scores.calibration_error <= 1
    told = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert told["confusion"] == confusion.tolist()
    assert told["classes"][names[0]]["count"] == scores.classes[names[0]].count


@pytest.mark.parametrize(
    ("labels", "probabilities", "names", "error", "words"),
    [
        ([], np.zeros((0, 3)), NAMES, DataError, "no labelled images"),
        (LABELS, ANSWERS[:3], NAMES, SettingError, r"labels \(4,\) and probabilities \(3, 3\) do not fit"),
        (LABELS, ANSWERS, NAMES[:2], SettingError, r"\(N, 2\) are needed for 2 classes"),
        (LABELS, ANSWERS, ("cat", "dog", "cat"), SettingError, "two classes have the same name"),
        ([0, 0, 0, 3], ANSWERS, NAMES, DataError, "whole numbers from 0 to 2, not 0 to 3"),
        ([0, 0, 0, -1], ANSWERS, NAMES, DataError, "not -1 to 0"),
        ([0, 0, 0, 0.5], ANSWERS, NAMES, DataError, "whole numbers"),
        (LABELS, [*ANSWERS[:3], [np.nan] * 3], NAMES, ModelError, "NaN or infinity for 1 of 4 images"),
        (LABELS, [*ANSWERS[:3], [np.inf, 0, 0]], NAMES, ModelError, "NaN or infinity for 1 of 4 images"),
        (LABELS, [*ANSWERS[:3], [3.0, -1.0, -1.0]], NAMES, ModelError, "are no probabilities"),
        (LABELS, [*ANSWERS[:3], [0.9, 0.9, 0.9]], NAMES, ModelError, "sum to 1"),
    ],
)
def test_what_cannot_be_scored(labels, probabilities, names, error, words):
    with pytest.raises(error, match=words):
        Scores.of(labels, probabilities, names)
