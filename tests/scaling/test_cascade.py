"""What cascades are said to be worth is what comes out when every image is asked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anyvit.costs.budget import Budget
from anyvit.errors import SettingError
from anyvit.models import create_model
from anyvit.scaling.candidate import Candidate, Cascade, Result, Step, candidate_from_json, costs_of
from anyvit.scaling.cascade import (
    ALWAYS,
    DROPS,
    MOST,
    NEVER,
    CascadeRunner,
    Curve,
    Marks,
    anew,
    assemble,
    calibrate,
    cascades,
    extremes,
)
from anyvit.scaling.workshop import Workshop


def plain(name):
    return Candidate((), Step(name))


SMALL, LARGE = plain("small"), plain("large")


@st.composite
def answers(draw, least=1):
    """Probabilities of two candidates about the same images, many of them equally sure, and the labels."""
    count, classes = draw(st.integers(least, 40)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    steps = draw(st.sampled_from([2, 5, 1000]))

    def probabilities():
        shares = np.round(random.random((count, classes)) * steps) + 1
        return (shares / shares.sum(1, keepdims=True)).astype(np.float32)

    return probabilities(), probabilities(), random.integers(0, classes, count)


def asked(small, large, threshold):
    """All answers of a cascade, one image after the other, and how many times the large part was asked."""
    calls = []

    def ask_large(images):
        calls.extend(images.tolist())
        return torch.from_numpy(large)[images]

    runner = CascadeRunner(lambda images: torch.from_numpy(small)[images], ask_large, threshold)
    rows = [runner(torch.tensor([index])).numpy()[0] for index in range(len(small))]
    return np.array(rows), len(calls)


@given(answers())
@settings(max_examples=50, deadline=None)
def test_curve_is_what_a_simulation_finds(drawn):
    small, large, labels = drawn
    curve = Curve.of(Marks.of(small, labels), Marks.of(large, labels))
    assert (curve.thresholds[0], curve.thresholds[-1]) == (NEVER, ALWAYS)
    assert (np.diff(curve.thresholds) > 0).all()
    assert (np.diff(curve.shares) > 0).all()
    for threshold, share, accuracy in zip(curve.thresholds, curve.shares, curve.accuracies, strict=True):
        rows, calls = asked(small, large, float(threshold))
        assert share == pytest.approx(calls / len(labels))
        assert accuracy == pytest.approx((rows.argmax(1) == labels).mean())


@given(answers())
@settings(deadline=None)
def test_thresholds_fall_with_the_accuracy_that_is_asked(drawn):
    small, large, labels = drawn
    marks = Marks.of(small, labels), Marks.of(large, labels)
    thresholds = calibrate(*marks, drops=(0.0, 0.005, 0.01, 0.1, 1.0))
    assert list(thresholds) == sorted(thresholds, reverse=True)
    assert thresholds[-1] == NEVER
    best = [calibrate(*marks, drops=(), highest=highest)[0] for highest in (0.0, 0.3, 0.6, 0.9, ALWAYS)]
    assert best[0] == NEVER
    assert best == sorted(best)


@given(answers(least=2), st.floats(1.0, 3.0))
@settings(max_examples=50, deadline=None)
def test_cascades_cost_and_send_on_what_a_simulation_does(drawn, bound):
    small, large, labels = drawn
    results = priced(small, large, labels)
    probabilities = {SMALL.id: small, LARGE.id: large}
    budget = Budget.parse(f"latency_expected<={bound}s")
    found = cascades(results, probabilities, labels, budget, lambda candidate: nn.Linear(2, 3))
    assert len(found) <= MOST
    _, held_out = np.array_split(np.random.default_rng(0).permutation(len(labels)), 2)
    for result in found:
        rows, calls = asked(small, large, result.candidate.threshold)
        assert result.escalated == pytest.approx(calls / len(labels))
        assert 0 < result.escalated < 1
        assert result.costs["latency_expected"] == pytest.approx(1.0 + 2.0 * calls / len(labels))
        assert result.costs["latency"] == 3.0
        right, alone = (answer.argmax(1) == labels for answer in (rows, large))
        won = right[held_out].mean() - alone[held_out].mean()
        assert result.accuracy == pytest.approx(min(1.0, max(0.0, alone.mean() + won)))
    by_cost = sorted([*results, *found], key=lambda result: result.costs["latency_expected"])
    kept = [result for result in by_cost if result in found]
    assert [r.accuracy for r in kept] == sorted({r.accuracy for r in kept})


def priced(small, large, labels, **more):
    def result(candidate, latency, answer):
        costs = {"latency": latency, "latency_expected": latency, "macs": latency, "size": latency, **more}
        return Result(candidate, costs, float((answer.argmax(1) == labels).mean()))

    return [result(SMALL, 1.0, small), result(LARGE, 2.0, large)]


def split_evenly(count=400):
    """Of so many images the small candidate is right where it is sure, and the large one everywhere."""
    sure = np.arange(count) % 4 > 0
    labels = np.zeros(count, int)
    small = np.where(sure[:, None], [0.9, 0.1], [0.45, 0.55])
    large = np.where(sure[:, None], [0.7, 0.3], [0.8, 0.2])
    return small, large, labels


def test_cascade_that_is_right_everywhere_is_found_with_a_short_threshold():
    small, large, labels = split_evenly()
    results = priced(small, large, labels, throughput=4.0, latency_e2e=5.0)
    budget = Budget.parse("latency_expected<=9s")
    (best, *_) = cascades(results, {SMALL.id: small, LARGE.id: large}, labels, budget, lambda _: nn.Linear(2, 3))
    assert best.candidate == Cascade(SMALL, LARGE, 0.7)
    assert best.id == "full-small-then-full-large-below0.7"
    assert best.accuracy == 1.0
    assert best.escalated == 0.25
    assert best.costs == {
        "latency": 3.0,
        "latency_expected": 1.5,
        "macs": 3.0,
        "size": 3.0,
        "params": 18,
        "throughput": 2.0,
        "latency_e2e": 7.0,
    }


def test_budget_that_leaves_room_for_some_images_is_filled():
    random = np.random.default_rng(0)
    labels = np.zeros(2000, int)
    confidence = random.uniform(0.5, 1.0, 2000)
    wrong = random.random(2000) > confidence
    small = np.where(wrong[:, None], np.c_[1 - confidence, confidence], np.c_[confidence, 1 - confidence])
    large = np.tile([0.9, 0.1], (2000, 1))
    results = priced(small, large, labels)
    room = "latency_expected<=1.575s"  # with the margin 1.5 s: a quarter of the images
    found = cascades(results, {SMALL.id: small, LARGE.id: large}, labels, Budget.parse(room), lambda _: nn.Linear(1, 1))
    assert found[-1].escalated == pytest.approx(0.25, abs=0.002)
    assert found[-1].accuracy > results[0].accuracy + 0.05
    tight = Budget.parse("latency_expected<=1.575s, latency<=2.5s")  # both parts together take 3 s
    assert cascades(results, {SMALL.id: small, LARGE.id: large}, labels, tight, lambda _: nn.Linear(1, 1)) == []


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_images_and_one_class(count):
    ones, labels = np.ones((count, 1), np.float32), np.zeros(count, int)
    results = priced(ones, ones, labels) if count else []
    budget = Budget.parse("latency_expected<=9s")
    assert cascades(results, {SMALL.id: ones, LARGE.id: ones}, labels, budget, lambda _: nn.Linear(1, 1)) == []


@pytest.mark.parametrize(("confidence", "right"), [(1.0, 0), (0.5, 1)])
def test_equally_sure_images_stay_together(confidence, right):
    small = np.tile([confidence, 1 - confidence], (6, 1))
    large = np.tile([0.1, 0.9], (6, 1))
    labels = np.full(6, right)
    curve = Curve.of(Marks.of(small, labels), Marks.of(large, labels))
    assert curve.shares.tolist() == [0, 1]
    assert calibrate(Marks.of(small, labels), Marks.of(large, labels)) == (ALWAYS if right else NEVER,) * len(DROPS)


def test_large_part_is_asked_about_unsure_images_alone():
    seen = []

    def large(images):
        seen.append(images.flatten().tolist())
        return torch.tensor([[0.0, 1.0]]).expand(len(images), 2)

    with torch.inference_mode():
        table = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]])
    runner = CascadeRunner(lambda images: table[images.flatten()], large, 0.65)
    probabilities, went_on = runner.answer(torch.tensor([[0], [1], [2]]))
    assert went_on.tolist() == [False, True, False]
    assert probabilities.tolist() == pytest.approx(np.array([[0.9, 0.1], [0.0, 1.0], [0.7, 0.3]]), abs=1e-6)
    assert table[1, 0] == torch.tensor(0.6)
    never, always = extremes(runner)
    never(torch.tensor([[0], [1]]))
    assert seen == [[1]]
    always(torch.tensor([[0], [1]]))
    assert seen == [[1], [0, 1]]
    assert extremes(large) == (large, large)


def test_runner_is_assembled_of_parts():
    built = assemble(Cascade(SMALL, LARGE, 0.5), lambda part: part.id)
    assert built == CascadeRunner("full-small", "full-large", 0.5)
    assert assemble(SMALL, lambda part: part.id) == "full-small"


@given(st.floats(0, 2), st.integers(1, 12))
def test_cascade_survives_json_and_has_a_short_id(threshold, steps):
    levers = tuple(Step(f"lever{n}", {"setting": n}) for n in range(steps))
    cascade = Cascade(Candidate(levers, Step("onnx", {"precision": "int8-dynamic"})), LARGE, threshold)
    result = Result(cascade, {"latency": 1.0}, 0.5, escalated=0.25)
    again = Result.from_json(json.loads(json.dumps(result.to_json())))
    assert again == result
    assert candidate_from_json(cascade.to_json()) == cascade
    assert cascade.parts == (again.candidate.small, LARGE)
    assert len(cascade.id) <= 100
    assert "/" not in cascade.id
    assert cascade.id != Cascade(cascade.small, LARGE, threshold + 0.5).id


def test_expected_latency_is_shown_where_it_tells_something():
    same = Result(SMALL, {"params": 1, "latency": 1.0, "latency_expected": 1.0})
    other = Result(Cascade(SMALL, LARGE, 0.5), {"latency": 3.0, "latency_expected": 1.5, "macs": 2})
    assert costs_of([same]) == ["latency", "params"]
    assert costs_of([same, other]) == ["latency", "latency_expected", "params", "macs"]


def test_what_is_no_cascade_is_refused():
    with pytest.raises(SettingError, match=r"^a cascade needs two candidates: full-small was given twice\.$"):
        Cascade(SMALL, plain("small"), 0.5)
    for threshold in (-0.1, float("nan")):
        with pytest.raises(SettingError, match=r"^the threshold of a cascade is a confidence from 0 up, not "):
            Cascade(SMALL, LARGE, threshold)


def test_parameters_of_nested_parts_count_once_and_figures_are_taken_anew():
    model = create_model("hydravit_tiny_patch2_8", num_classes=4).eval()
    workshop = Workshop(model, torch.zeros(1, 3, 8, 8))
    small, large = (Candidate((Step("heads", heads),), Step("torch")) for heads in ({"heads": 1}, {}))
    cascade = Result(Cascade(small, large, 0.5), {"latency": 9.0, "params": 1}, 0.75, escalated=0.5)
    new = {
        part.id: Result(part, {"latency": time, "latency_expected": time}, unstable=time > 1)
        for part, time in ((small, 1.0), (large, 2.0))
    }
    again = anew(cascade, new, workshop.shape)
    params = sum(parameter.numel() for parameter in model.parameters())
    assert again.costs == {"latency": 3.0, "latency_expected": 2.0, "params": params}
    assert (again.accuracy, again.escalated, again.unstable) == (0.75, 0.5, True)
    assert anew(Result(large, {}, 0.5), new, workshop.shape) == Result(large, new[large.id].costs, 0.5, unstable=True)


def test_a_slower_candidate_that_is_less_accurate_makes_no_cascade():
    small, large, labels = split_evenly()
    results = priced(large, small, labels)
    answers = {SMALL.id: large, LARGE.id: small}
    assert cascades(results, answers, labels, Budget.parse("latency_expected<=9s"), lambda _: nn.Linear(2, 3)) == []
