"""A ranker learns sums of logarithms, and a hope says what is worth measuring."""

from __future__ import annotations

import math

import pytest

from anyvit.costs.budget import Budget
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.hope import ahead, hope_for
from anyvit.scaling.ranker import Guess, Ranker


def candidate(heads, tokens, runtime):
    steps = (Step("heads", {"heads": heads} if heads else {}), Step("tokens", {"keep": tokens} if tokens else {}))
    return Candidate(steps, Step(runtime))


def result(heads, tokens, runtime):
    latency = 0.9**heads * 0.8**tokens * (0.5 if runtime == "fast" else 1.0)
    odds = 2.0 - 0.3 * heads - 0.1 * tokens
    costs = {"latency": latency, "throughput": 1 / latency}
    return Result(candidate(heads, tokens, runtime), costs, 1 / (1 + math.exp(-odds)))


def macs(candidate):
    return math.prod(0.85 for _ in candidate.active)


MEASURED = [result(*places) for places in ((0, 0, "torch"), (0, 0, "fast"), (1, 0, "fast"), (2, 0, "fast"))]
MEASURED += [result(0, tokens, "fast") for tokens in (1, 2)]


@pytest.mark.parametrize("cost", ["latency", "throughput"])
def test_combinations_are_guessed_from_their_parts(cost):
    truth = result(2, 1, "torch")
    guess = Ranker(MEASURED, cost, macs).guesses([truth.plain])[truth.id]
    assert guess.cost == pytest.approx(truth.costs[cost], rel=0.05)
    assert guess.accuracy == pytest.approx(truth.accuracy, abs=0.02)
    assert guess.best_accuracy >= guess.accuracy
    assert ahead(cost, guess.cost, guess.best_cost) >= 0


def test_what_was_never_measured_is_guessed_all_the_same():
    (guess,) = Ranker(MEASURED, "latency", macs).guesses([candidate(9, 9, "other")]).values()
    assert guess.cost > 0
    assert 0 <= guess.accuracy <= 1
    assert Ranker(MEASURED, "latency", macs).guesses([]) == {}


def guess(cost, accuracy):
    return {"latency": Guess(cost, cost, accuracy, accuracy)}


def test_inside_a_budget_more_accuracy_is_hoped_for():
    results = [Result(candidate(0, 0, "torch"), {"latency": 0.8}, 0.7)]
    hope = hope_for(Budget.parse("latency<=1s"), results)
    assert hope(guess(0.9, 0.8)) == pytest.approx(0.1)
    assert hope(guess(0.9, 0.6)) < 0
    assert hope(guess(1.5, 0.99)) < 0


def test_outside_nearer_is_better_and_with_a_bound_on_accuracy_faster_is():
    results = [Result(candidate(0, 0, "torch"), {"latency": 4.0}, 0.7)]
    nearer = hope_for(Budget.parse("latency<=1s"), results)
    assert nearer(guess(1.5, 0.1)) > nearer(guess(3.0, 0.9)) > 0
    faster = hope_for(Budget.parse("accuracy>=60%"), results)
    assert faster(guess(2.0, 0.65)) == pytest.approx(0.5)
    assert faster(guess(1.0, 0.5)) <= 0
    front = hope_for(Budget.parse(None), results)
    assert front(guess(5.0, 0.8)) == pytest.approx(0.1)
    assert front(guess(2.0, 0.6)) == pytest.approx(0.6)  # nothing is known at that cost
