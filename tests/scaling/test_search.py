"""Candidates are listed in order, and the one that is chosen is the best one inside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvit.costs.budget import Budget
from anyvit.errors import BudgetError
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.search import TIMED, choose, closest, out_of_reach, pareto, primary_cost, reachable, within


def result(name, accuracy=None, **costs):
    return Result(Candidate((Step("heads", {"name": name}),), Step("torch")), costs, accuracy)


SMALL = result("small", 0.7, latency=0.001, params=10.0, throughput=900.0, size=40.0)
MIDDLE = result("middle", 0.8, latency=0.002, params=20.0, throughput=500.0, size=80.0)
LARGE = result("large", 0.9, latency=0.004, params=40.0, throughput=200.0, size=160.0)
ALL = [LARGE, SMALL, MIDDLE]


def test_timed_bounds_count_with_a_margin_and_counted_ones_without():
    for cost, text, exact, spare in (
        ("latency", "latency<=100ms", 0.1, 0.095),
        ("throughput", "throughput>=100/s", 100.0, 105.1),
    ):
        budget = Budget.parse(text)
        assert not within(result("a", **{cost: exact}), budget)
        assert within(result("a", **{cost: spare}), budget)
    assert within(result("a", params=5e6), Budget.parse("params<=5M"))
    assert within(result("a", params=5e6), Budget.parse("accuracy>=0.9"))  # decided after training


def test_the_front_rises_in_cost_and_accuracy():
    dominated = result("dominated", 0.75, latency=0.003, throughput=300.0)
    unscored = result("unscored", latency=0.0001, throughput=9999.0)
    assert pareto([*ALL, dominated, unscored], "latency") == [SMALL, MIDDLE, LARGE]
    assert pareto([*ALL, dominated, unscored], "throughput") == [SMALL, MIDDLE, LARGE]
    assert pareto([unscored], "latency") == []


def test_choose_takes_the_most_accurate_inside():
    assert choose(ALL, Budget()) is LARGE
    assert choose(ALL, Budget.parse("latency<=3ms")) is MIDDLE
    assert choose(ALL, Budget.parse("latency<=3ms, params<=15")) is SMALL
    assert choose(ALL, Budget.parse("throughput>=600/s")) is SMALL


def test_of_equally_accurate_ones_the_cheaper_is_chosen():
    slow, fast = (result(name, 0.9, latency=value, throughput=1 / value) for name, value in (("slow", 2), ("fast", 1)))
    assert choose([slow, fast], Budget()) is fast
    assert choose([fast, slow], Budget.parse("throughput>=0.1/s")) is fast


def test_before_training_more_parameters_stand_for_more_accuracy():
    assert choose([result("a", params=1.0), result("b", params=2.0)], Budget()).costs["params"] == 2.0


def test_closest_is_the_one_with_the_smallest_worst_miss():
    lopsided = result("lopsided", latency=0.0005, params=35.0)
    budget = Budget.parse("latency<=0.5ms, params<=5")
    assert closest([*ALL, lopsided], budget) is SMALL
    assert closest(ALL, Budget.parse("throughput>=1000/s")) is SMALL


def test_what_is_reachable_names_the_candidate_for_each_bound():
    budget = Budget.parse("latency<=1us, throughput>=9999/s")
    assert reachable(ALL, budget) == {"latency": (0.001, SMALL.id), "throughput": (900.0, SMALL.id)}
    assert primary_cost(budget) == "latency"
    assert primary_cost(Budget.parse("accuracy>=0.5, size<=1MB")) == "size"
    assert primary_cost(Budget()) == "latency"


def test_the_refusal_says_the_best_value_for_each_bound_missed():
    words = out_of_reach(ALL, Budget.parse("latency<=0.5ms, params<=10"))
    assert words.startswith(f"latency<=0.5ms (best: 1 ms with {SMALL.id}) cannot be met by any of 3 candidates.")
    assert "promised with 5% to spare" in words
    assert words.endswith("or use --anyway to go on all the same.")
    with pytest.raises(BudgetError, match=r"^size<=20B \(best: 40 B with .*\) cannot be met by any of 3"):
        choose(ALL, Budget.parse("size<=20B"))


def test_bounds_that_are_met_each_alone_but_never_together():
    only_fast, only_lean = result("fast", latency=0.001, params=90.0), result("lean", latency=0.009, params=10.0)
    words = out_of_reach([only_fast, only_lean], Budget.parse("latency<=2ms, params<=20"))
    assert "latency<=2ms (best: 1 ms with" in words
    assert "params<=20 (best: 10 with" in words
    assert "cannot be met together, though each alone can by any of 2 candidates" in words


POSITIVE = st.floats(1e-3, 1e3)


@st.composite
def results(draw):
    count = draw(st.integers(1, 8))
    costs = st.fixed_dictionaries(dict.fromkeys(("latency", "params", "throughput"), POSITIVE))
    return [result(str(n), draw(st.floats(0, 1)), **draw(costs)) for n in range(count)]


@st.composite
def budgets(draw):
    latency, params, throughput = draw(POSITIVE), draw(POSITIVE), draw(POSITIVE)
    texts = [f"latency<={latency}s", f"params<={params}", f"throughput>={throughput}/s"]
    return Budget.parse(", ".join(draw(st.lists(st.sampled_from(texts), unique=True))))


@given(results(), budgets())
def test_the_chosen_one_is_inside_and_none_inside_is_more_accurate(found, budget):
    inside = [one for one in found if within(one, budget)]
    if not inside:
        with pytest.raises(BudgetError):
            choose(found, budget)
        return
    chosen = choose(found, budget)
    assert chosen in inside
    assert chosen.accuracy == max(one.accuracy for one in inside)
    for bound in budget.cost_bounds():
        assert bound.met_by(chosen.costs[bound.cost], 1.05 if bound.cost in TIMED else 1.0)


@given(results(), st.sampled_from(["latency", "throughput"]))
def test_no_result_beats_one_of_the_front(found, cost):
    sign = -1 if cost == "throughput" else 1
    front = pareto(found, cost)
    if any(one.accuracy for one in found):
        assert max(one.accuracy for one in front) == max(one.accuracy for one in found)
    for kept in front:
        for other in found:
            cheaper = sign * other.costs[cost] <= sign * kept.costs[cost]
            assert not (cheaper and other.accuracy > kept.accuracy)


def test_with_a_bound_on_accuracy_alone_the_fastest_that_keeps_it_with_some_to_spare():
    results = [result("a", 0.95, latency=3.0), result("b", 0.92, latency=2.0), result("c", 0.905, latency=1.0)]
    budget = Budget.parse("accuracy>=90%")
    assert choose(results, budget) is results[2]
    assert choose(results, budget, spare=0.01) is results[1]
    assert choose(results, budget, spare=0.5) is results[2]
    assert choose(results, Budget.parse("accuracy>=99%")) is results[0]
