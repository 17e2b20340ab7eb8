"""What a shape is worth after a short training."""

from __future__ import annotations

import pytest

from anyvit.costs.counts import Specification
from anyvit.data import open_data
from anyvit.scaling.design.shape import name_of
from anyvit.scaling.design.short_training import ShortTraining

SMALL = Specification(8, 4, 1, 1, 16, 1.0)


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


def test_a_shape_is_trained_once_and_judged_on_validation(digits, tmp_path):
    events = []
    worth = ShortTraining(digits, tmp_path, epochs=2, seeds=(0, 1), images=100, progress=events.append)
    first = worth(SMALL)
    assert 0.1 < first.value < 1
    assert 0.01 < first.standard_error < 0.2
    trained = len(events)
    assert ShortTraining(digits, tmp_path, epochs=2, seeds=(0, 1), images=100, progress=events.append)(SMALL) == first
    assert trained
    assert len(events) == trained
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name_of(SMALL)}-epochs2-seed{seed}.json" for seed in (0, 1)
    ]


def test_a_name_tells_the_shape():
    assert name_of(Specification(224, 16, 12, 3, 64, 4.0)) == "i224p16d12h3x64m4"
