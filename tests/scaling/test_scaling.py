"""The greedy search over the factors of a plain ViT, its exchanges, the grid, and what they refuse."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from anyvit.costs.counts import Specification, vit_macs, vit_params
from anyvit.data import open_data
from anyvit.errors import BudgetError, SettingError
from anyvit.scaling.design.factors import FACTORS, Limits
from anyvit.scaling.design.scaling import greedy, grid
from anyvit.scaling.design.shape import Worth
from anyvit.scaling.design.short_training import ShortTraining
from anyvit.scaling.design.trace import Trace
from tests.scaling.latencies import latency

BASE = Specification(64, 16, 2, 2, 32, 2.0, num_classes=10)
SMALL = Limits(image_size=(16, 64), patch_sizes=(8, 4, 2))


def depth_pays(spec):
    """Worth more with every block, a little with everything else."""
    return math.log(spec.depth) + 0.1 * math.log(vit_macs(spec))


def test_it_reaches_the_budget_by_what_pays():
    trace = greedy(BASE, 8 * vit_macs(BASE), vit_macs, depth_pays)
    assert [step.chosen for step in trace.steps] == ["depth"] * 3
    assert trace.final == replace(BASE, depth=trace.final.depth)
    assert trace.cost == vit_macs(trace.final)
    assert trace.stuck is None
    assert abs(trace.cost / trace.budget - 1) <= trace.tol
    for step, (_, before) in zip(trace.steps, trace.path, strict=False):
        assert step.target == min(2 * before, trace.budget)
        assert [move.factor for move in step.candidates] == [*FACTORS]
        assert all((move.accuracy is not None) == (move.status == "ok") for move in step.candidates)
        assert all(abs(move.cost / step.target - 1) <= trace.tol for move in step.candidates if move.status == "ok")


def test_memory_or_any_other_cost_will_do():
    trace = greedy(BASE, 4 * vit_params(BASE), vit_params, depth_pays)
    assert abs(vit_params(trace.final) / trace.budget - 1) <= trace.tol


def test_within_a_standard_error_the_cheaper_wins():
    worth = {"depth": 0.81, "heads": 0.80, "mlp_ratio": 0.79}
    costs = {"depth": 2.05, "heads": 2.02, "mlp_ratio": 1.95}

    def factor(spec):
        return next((name for name in worth if getattr(spec, name) != getattr(BASE, name)), None)

    def cost(spec):
        return costs.get(factor(spec), 1.0 if spec == BASE else 100.0)

    def chosen(error):
        trace = greedy(BASE, 2.0, cost, lambda spec: Worth(worth[factor(spec)], error))
        return trace.steps[0].chosen

    assert [chosen(error) for error in (0.0, 0.015, 0.025)] == ["depth", "heads", "mlp_ratio"]


def test_exact_ties_go_to_the_cheaper_and_then_to_the_first_factor():
    trace = greedy(BASE, 2 * vit_macs(BASE), vit_macs, lambda spec: 0.5)
    able = [move for move in trace.steps[0].candidates if move.status == "ok"]
    assert trace.steps[0].winner == min(able, key=lambda move: move.cost)
    trace = greedy(BASE, 2.0, lambda spec: 1.0 if spec == BASE else 2.0, lambda spec: 0.5)
    assert trace.steps[0].chosen == "depth"


def test_a_search_without_a_way_says_so_and_goes_on_with_smaller_steps():
    limits = Limits(depth=(1, 2, 1), head_dim=(8, 32, 8), mlp_ratio=(1, 2, 0.5), image_size=(64, 64), patch_sizes=(16,))
    trace = greedy(BASE, 10 * vit_macs(BASE), vit_macs, depth_pays, limits=limits, ratio=2.0, tol=0.01)
    assert trace.final == BASE
    assert "stuck at i64p16d2h2x32m2, which costs" in trace.stuck
    assert "Try a ratio below 2, or a tol above 0.01." in trace.stuck
    assert "depth: exhausted" in trace.stuck
    assert "heads 3: off_target, costs" in trace.stuck
    assert not trace.accuracies
    trace = greedy(BASE, 10 * vit_macs(BASE), vit_macs, depth_pays, limits=limits, tol=0.4, trace=trace)
    assert [step.chosen for step in trace.steps] == ["heads"] * len(trace.steps)
    assert trace.reached


def test_an_interrupted_search_goes_on_and_evaluates_nothing_again():
    budget, asked, saved = 8 * vit_macs(BASE), [], []

    def evaluate(spec):
        asked.append(spec)
        return depth_pays(spec)

    whole = greedy(BASE, budget, vit_macs, evaluate, kept=lambda trace: saved.append(json.dumps(trace.to_json())))
    assert len(asked) == len(set(asked)) == len(whole.accuracies)
    assert len(saved) == len(whole.steps)
    for text in saved:
        asked.clear()
        so_far = Trace.from_json(json.loads(text))
        assert greedy(BASE, budget, vit_macs, evaluate, trace=so_far) == whole
        assert set(asked) == whole.accuracies.keys() - so_far.accuracies.keys()


def test_a_finished_search_goes_on_to_a_larger_budget():
    trace = greedy(BASE, 2 * vit_macs(BASE), vit_macs, depth_pays)
    further = greedy(BASE, 8 * vit_macs(BASE), vit_macs, depth_pays, trace=trace)
    assert further.steps[: len(trace.steps)] == trace.steps
    assert further.reached


def test_exchanges_lower_what_growth_alone_cannot():
    def small_images_pay(spec):
        return -spec.image_size / 100 + math.log(spec.depth)

    base = replace(BASE, image_size=128)
    limits = Limits(image_size=(64, 128), patch_sizes=(16,))
    plain = greedy(base, 4 * vit_macs(base), vit_macs, small_images_pay, limits=limits)
    slim = greedy(base, 4 * vit_macs(base), vit_macs, small_images_pay, limits=limits, slim=True)
    assert plain.final.image_size == 128
    assert slim.final.image_size < 128
    assert [step.exchange for step in slim.steps] == [False, True] * (len(slim.steps) // 2)
    assert slim.cost <= slim.budget * (1 + slim.tol)
    assert any(step.chosen and step.chosen.endswith("for image_size") for step in slim.steps)
    assert Trace.from_json(json.loads(json.dumps(slim.to_json()))) == slim


def test_an_exchange_must_be_worth_more_than_a_standard_error():
    limits = Limits(image_size=(64, 128), patch_sizes=(16,))
    base = replace(BASE, image_size=128)

    def evaluate(spec):
        return Worth(-spec.image_size / 100 + math.log(spec.depth), 10.0)

    trace = greedy(base, 2 * vit_macs(base), vit_macs, evaluate, limits=limits, slim=True)
    assert [step.chosen for step in trace.steps if step.exchange] == [None]


def test_measured_costs_take_the_place_of_predicted_ones():
    groups = []

    def measure(specs):
        groups.append(specs)
        return {spec: latency(1.04 * vit_macs(spec)) for spec in specs}

    trace = greedy(BASE, 4 * vit_macs(BASE), vit_macs, depth_pays, measure=measure)
    assert groups[0] == [BASE]
    assert len(groups) == len(trace.steps) + 1  # those of a step together
    assert trace.base_cost == 1.04 * vit_macs(BASE)
    assert trace.cost == 1.04 * vit_macs(trace.final)


@pytest.mark.parametrize(("unstable", "chosen"), [(False, "heads"), (True, "mlp_ratio")])
def test_where_clocks_cannot_tell_macs_decide(unstable, chosen, caplog):
    def measure(specs):
        return {spec: latency(2.0 if spec.heads > 2 else 2.001, unstable=unstable, width=0.01) for spec in specs}

    def cost(spec):
        wanted = (replace(BASE, heads=4), replace(BASE, mlp_ratio=4.0))
        return 2.0 if spec in wanted else 1.2

    trace = Trace(BASE, 1.0, 2.0, 2.0, 0.12)
    step = greedy(BASE, 2.0, cost, lambda spec: 0.5, measure=measure, trace=trace).steps[0]
    assert step.chosen == chosen
    assert vit_macs(replace(BASE, mlp_ratio=4.0)) < vit_macs(replace(BASE, heads=4))
    assert ("are unstable and overlap: their MACs decide" in caplog.text) is unstable


def test_the_grid_ranks_all_that_cost_about_the_budget():
    by = {"depth": (1, 2, 4), "heads": (1, 2), "mlp_ratio": (1, 2)}
    ranked = grid(BASE, 4 * vit_macs(BASE), vit_macs, depth_pays, by, tol=0.3)
    assert ranked
    assert all(abs(one.cost / (4 * vit_macs(BASE)) - 1) <= 0.3 for one in ranked)
    assert [one.accuracy.value for one in ranked] == sorted((one.accuracy.value for one in ranked), reverse=True)
    with pytest.raises(BudgetError, match="none of 12 combinations costs 1000 within 12%: the nearest costs"):
        grid(BASE, 1000, vit_macs, depth_pays, by)
    with pytest.raises(SettingError, match="unknown factors width. Known: depth, heads"):
        grid(BASE, 1000, vit_macs, depth_pays, {"width": (1, 2)})


def test_what_cannot_be_is_refused():
    budget = 4 * vit_macs(BASE)
    with pytest.raises(SettingError, match="image size 100 not divisible by patch size 16"):
        replace(BASE, image_size=100)
    with pytest.raises(BudgetError, match="i64p16d2h2x32m2 costs .* above the budget of 10. Start from a smaller"):
        greedy(BASE, 10, vit_macs, depth_pays)
    for ratio in (1.0, 0.5, math.nan):
        with pytest.raises(SettingError, match="must be above 1"):
            greedy(BASE, budget, vit_macs, depth_pays, ratio=ratio)
    for tol in (0.0, 0.5, -1):
        with pytest.raises(SettingError, match="must be between 0 and 0.5"):
            greedy(BASE, budget, vit_macs, depth_pays, tol=tol)
    with pytest.raises(SettingError, match="evaluator returned nan for spec i64p16"):
        greedy(BASE, budget, vit_macs, lambda spec: math.nan)
    with pytest.raises(SettingError, match="a cost must be above 0 and finite, not inf of i64p16"):
        greedy(BASE, budget, lambda spec: math.inf, depth_pays)
    trace = greedy(BASE, budget, vit_macs, depth_pays)
    with pytest.raises(SettingError, match="the trace begins at i64p16d2h2x32m2, not at i64p16d3"):
        greedy(replace(BASE, depth=3), budget, vit_macs, depth_pays, trace=trace)
    with pytest.raises(SettingError, match="this is no trace of a scaling search: KeyError"):
        Trace.from_json({"base": {}})


def test_a_base_with_odd_heads_is_warned_of(caplog):
    greedy(replace(BASE, head_dim=20), 2 * vit_macs(BASE), vit_macs, depth_pays)
    assert "heads of the base are 20 wide, not a multiple of 8" in caplog.text


def test_progress_is_told():
    events = []
    greedy(BASE, 4 * vit_macs(BASE), vit_macs, depth_pays, progress=events.append)
    done = [event.done for event in events if event.done is not None]
    assert done[0] == 0
    assert done == sorted(done)
    assert done[-1] > 0.9
    assert any(event.message.startswith("evaluating i64p16") for event in events)


@pytest.mark.slow
def test_short_trainings_lead_to_the_budget(tmp_path):
    data = open_data("digits")
    base = Specification(16, 8, 1, 1, 16, 1.0, num_classes=len(data.classes))
    limits = Limits((1, 8, 1), (1, 1, 1), (8, 64, 8), (1, 1, 0.5), (16, 16), (8,))
    trace = greedy(base, 8 * vit_macs(base), vit_macs, ShortTraining(data, tmp_path, epochs=1), limits=limits)
    assert len(trace.steps) >= 3
    assert abs(trace.cost / trace.budget - 1) <= trace.tol
    assert all(0 < accuracy.value < 1 and accuracy.standard_error > 0 for accuracy in trace.accuracies.values())
