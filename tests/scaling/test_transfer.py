"""Whether a strategy found on one device is recommended on another: on devices that are formulas."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from anyvit.costs.counts import Specification, vit_macs
from anyvit.errors import SettingError
from anyvit.scaling.design.scaling import greedy
from anyvit.scaling.design.shape import Worth
from anyvit.scaling.design.strategy import Strategy
from anyvit.scaling.design.trace import Trained
from anyvit.scaling.design.transfer import best_within, check_transfer, recost, remembering

BASE = Specification(64, 16, 2, 2, 32, 2.0)
BUDGET = 12 * vit_macs(BASE) * 1e-11


def there(spec):
    return 1e-11 * vit_macs(spec)


def like_there(spec):
    return 2e-11 * vit_macs(spec) + 1e-6


def depth_is_free(spec):
    """Every block in parallel: all that counts there does not count here, and width is slow."""
    return 1e-11 * vit_macs(spec) / spec.depth**1.5


def worth(spec):
    return 1 - 1 / (1 + spec.depth + spec.embed_dim / 64)


@pytest.fixture(scope="module")
def trace():
    return greedy(BASE, BUDGET, there, worth, ratio=1.5)


def test_a_device_alike_is_recommended(trace):
    report = check_transfer(trace, 2 * BUDGET, like_there, evaluate=worth)
    assert len(report.rows) == len(trace.path) >= 6
    assert report.tau == pytest.approx(1)
    assert report.recommended
    assert abs(report.applied.relative_error) <= 0.1
    assert report.applied.spec == Strategy.of(trace).apply(BASE, 2 * BUDGET, like_there).spec
    assert report.regret == pytest.approx(report.best.accuracy.value - worth(report.applied.spec))
    assert "Kendall's tau of the costs of" in report.words
    assert report.words.endswith("Use the strategy.")


def test_a_device_that_ranks_otherwise_is_not(trace):
    report = check_transfer(trace, BUDGET, depth_is_free)
    assert report.tau < 0.8
    assert not report.recommended
    assert report.words.endswith("Search here again: what was evaluated there need not be trained again.")


def test_a_budget_that_the_transferred_shape_misses_is_not(trace):
    report = check_transfer(trace, 1000 * BUDGET, like_there)
    assert report.tau == pytest.approx(1)
    assert report.applied.relative_error < -0.1
    assert not report.recommended


def test_regret_is_known_where_accuracies_are(trace):
    report = check_transfer(trace, 1.7 * BUDGET, like_there)
    assert report.applied.spec not in trace.accuracies
    assert report.accuracy is None
    assert report.regret is None
    assert "evaluated before is not known" in report.words
    exact = check_transfer(trace, BUDGET, like_there, evaluate=lambda spec: Worth(0.25, 0.01))
    assert exact.regret == pytest.approx(exact.best.accuracy.value - 0.25)


def test_predictions_are_held_against_measurements(trace):
    asked = []

    def measured(spec):
        asked.append(spec)
        return like_there(spec)

    report = check_transfer(trace, 2 * BUDGET, measured, predict=lambda spec: 1.05 * like_there(spec))
    assert report.prediction_error == pytest.approx(0.05)
    assert "predictions for here are off by 5.0% on average" in report.words
    assert report.applied.cost == like_there(report.applied.spec)  # found by prediction, judged by measurement
    assert set(asked) == {*dict(trace.path), *trace.accuracies, report.applied.spec}


def test_the_report_is_plain_data(trace):
    data = json.loads(json.dumps(check_transfer(trace, BUDGET, like_there, evaluate=worth).to_json()))
    assert data["recommended"] is True
    assert data["rows"][0]["spec"]["depth"] == 2
    assert data["words"].endswith("Use the strategy.")


def test_six_shapes_judge_a_transfer(trace):
    short = replace(trace, steps=trace.steps[:3])
    with pytest.raises(SettingError, match="at least 6 shapes along the path, not 4: search with a smaller ratio"):
        check_transfer(short, BUDGET, like_there)
    more = {replace(BASE, depth=depth): there(replace(BASE, depth=depth)) for depth in (20, 30, 40)}
    assert len(check_transfer(short, BUDGET, like_there, there=more).rows) == 7


def test_a_trace_costs_anew_without_training(trace):
    trained = recost(trace, depth_is_free)
    assert {one.spec: one.accuracy for one in trained} == trace.accuracies
    assert [one.cost for one in trained] == sorted(depth_is_free(spec) for spec in trace.accuracies)
    assert best_within(trained, 0.0) is None
    best = best_within(trained, BUDGET)
    assert all(one.accuracy.value <= best.accuracy.value for one in trained if one.cost <= BUDGET)


def test_of_equals_the_cheaper_is_best():
    one, other = (Trained(BASE, cost, Worth(0.5, 0.0)) for cost in (2.0, 1.0))
    assert best_within([one, other], 3.0) is other


def test_a_search_elsewhere_trains_only_what_is_new(trace):
    asked = []

    def evaluate(spec):
        asked.append(spec)
        return worth(spec)

    again = greedy(BASE, 2 * BUDGET, lambda s: 2 * there(s), remembering(evaluate, trace.accuracies), ratio=1.5)
    assert again.final == trace.final
    assert not asked
    greedy(BASE, BUDGET, depth_is_free, remembering(evaluate, trace.accuracies), ratio=1.5)
    assert asked
    assert not trace.accuracies.keys() & set(asked)
