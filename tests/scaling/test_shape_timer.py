"""Shapes timed a few at a time, once, and what is learned from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anyvit.costs.counts import Specification, vit_macs
from anyvit.costs.timing_cache import TimingCache
from anyvit.errors import ModelError
from anyvit.scaling.candidate import Step
from anyvit.scaling.design import timing
from anyvit.scaling.design.factors import Limits, latin_hypercube
from anyvit.scaling.design.timing import ShapeTimer
from tests.conftest import HASTY
from tests.scaling.latencies import latency

TINY = Specification(16, 8, 1, 1, 8, 1.0, num_classes=4)
SHAPES = [replace(TINY, depth=depth, image_size=size) for size in (16, 24) for depth in (1, 2, 3, 4)]


@pytest.fixture
def calls(monkeypatch):
    """The groups that were timed; their times are made up, from the MACs."""
    groups = []

    def time_calls(calls, conditions, batch, **protocol):
        groups.append(list(calls))
        return {name: latency(1e-3 * (1 + place), unstable=UNSTABLE in name) for place, name in enumerate(calls)}

    monkeypatch.setattr(timing, "time_calls", time_calls)
    return groups


UNSTABLE = "d3h"


def test_shapes_of_any_image_size_are_timed():
    latencies = ShapeTimer(Step("torch"), batch=2, **HASTY).latencies(SHAPES[::3])
    assert [*latencies] == SHAPES[::3]
    for found in latencies.values():
        assert found.seconds > 0
        assert (found.batch, found.threads) == (2, 1)
    assert torch.is_grad_enabled()


def test_shapes_of_similar_size_are_timed_together(calls):
    ShapeTimer(Step("torch")).latencies(SHAPES[::-1])
    assert [len(group) for group in calls] == [6, 2]
    macs = {f"i{s.image_size}p8d{s.depth}h1x8m1 of 4 classes": vit_macs(s) for s in SHAPES}
    timed = [macs[name] for group in calls for name in group]
    assert timed == sorted(timed)


def test_nothing_is_timed_twice(calls, tmp_path):
    timer = ShapeTimer(Step("torch"), cache=TimingCache(tmp_path))
    first = timer.latencies(SHAPES[:4])
    assert timer.latency(SHAPES[1]) == first[SHAPES[1]]
    assert len(calls) == 1
    again = ShapeTimer(Step("torch"), cache=TimingCache(tmp_path)).latencies(SHAPES[:2])
    assert again == {spec: first[spec] for spec in SHAPES[:2]}
    assert len(calls) == 1


def test_an_unstable_timing_is_given_once_and_then_measured_again(calls, tmp_path):
    (shaky,) = (spec for spec in SHAPES if spec.depth == 3 and spec.image_size == 16)
    timer = ShapeTimer(Step("torch"), cache=TimingCache(tmp_path))
    assert timer.latency(shaky).unstable
    assert timer.latency(shaky).unstable
    assert len(calls) == 1
    ShapeTimer(Step("torch"), cache=TimingCache(tmp_path)).latency(shaky)
    assert len(calls) == 2


def test_other_conditions_are_other_timings(calls, tmp_path):
    for backend, conditions in [
        (Step("torch"), {}),
        (Step("torch"), {"batch": 2}),
        (Step("torch"), {"threads": 2}),
        (Step("torch"), {"runs": 3}),
        (Step("torch", {"precision": "bfloat16"}), {}),
    ]:
        ShapeTimer(backend, cache=TimingCache(tmp_path), **conditions).latency(TINY)
    assert len(calls) == 5


def test_a_shape_that_cannot_be_run_is_named():
    with pytest.raises(ModelError, match=r"i16p8d1h1x8m1 of 4 classes failed while it was timed"):
        ShapeTimer(Step("torch"), **HASTY).latency(replace(TINY, in_chans=1))


def test_a_predictor_learns_from_steady_timings(monkeypatch):
    def time_calls(calls, conditions, batch, **protocol):
        return {name: latency(1.0 if "d3h" in name else by_name[name], unstable="d3h" in name) for name in calls}

    limits = Limits((1, 4, 1), (1, 2, 1), (8, 16, 8), (1, 3, 0.5), (16, 64), (8,))
    shapes = latin_hypercube(limits, 60, num_classes=4)
    by_name = {f"{timing.name_of(spec)} of 4 classes": 1e-3 + 1e-9 * vit_macs(spec) for spec in shapes}
    monkeypatch.setattr(timing, "time_calls", time_calls)
    monkeypatch.setattr(timing.ShapeTimer, "_call", lambda self, spec: None)
    predictor, error = ShapeTimer(Step("torch")).predictor(shapes)
    assert error.usable
    assert predictor(TINY) == pytest.approx(1e-3 + 1e-9 * vit_macs(TINY), rel=0.05)


def test_progress_is_told(calls):
    events = []
    ShapeTimer(Step("torch"), progress=events.append).latencies(SHAPES)
    assert [(event.message, event.done) for event in events] == [("timing 6 shapes", 0), ("timing 2 shapes", 0.75)]
