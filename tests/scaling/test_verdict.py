"""What is kept of what was measured, and the reasons for the rest."""

from __future__ import annotations

from anyvit.costs.budget import Budget
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.verdict import MOST, beaten, finalists, losers


def result(latency, accuracy, runtime="torch", **lever):
    return Result(Candidate((Step("heads", lever),), Step(runtime)), {"latency": latency}, accuracy)


REFERENCE = result(1.0, 0.9)


def test_a_lever_must_gain_on_its_own_runtime():
    fast, lever = result(0.5, 0.9, "fast"), result(0.6, 0.89, "fast", heads=3)
    reasons = losers([REFERENCE, fast, lever], "latency")
    assert list(reasons) == [lever.id]
    assert reasons[lever.id] == "its levers gain nothing here: latency 600 ms, and full-fast 500 ms"


def test_a_runtime_must_gain_over_plain_pytorch():
    slow = result(1.2, 0.9, "slow")
    assert losers([REFERENCE, slow], "latency")[slow.id].startswith("the runtime gains nothing here")


def test_more_is_better_where_throughput_counts():
    slow, fast = (Result(Candidate((), Step(name)), {"throughput": value}, 0.9) for name, value in (("a", 1), ("b", 9)))
    assert list(losers([slow, fast], "throughput")) == []
    assert list(losers([fast, slow], "throughput")) == [slow.id]


def test_finalists_are_the_front_and_the_best_inside():
    results = [REFERENCE, *(result(1 / n, 0.9 - n / 100, heads=n) for n in range(2, 30))]
    near = result(0.26, 0.855, heads=40)
    final = finalists([*results, near], Budget.parse("latency<=300ms"))
    assert final[0] is REFERENCE
    assert near in final
    assert len(final) <= 1 + 3 + MOST
    assert len({result.id for result in final}) == len(final)


def test_what_is_beaten_is_told_by_what():
    better, worse = result(0.4, 0.88, heads=2), result(0.5, 0.87, heads=3)
    assert beaten(worse, [REFERENCE, better], "latency") == f"{better.id} is as good in both"
    assert "front" in beaten(better, [REFERENCE, worse], "latency")
