"""Requests at times of their own: when they come, what becomes of them, and what is told of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("starlette", reason="needs the extra serve")

from anyvit.deploy.load import OUTCOMES, SHAPES, Sent, bursts, fire, fire_and_wait, poisson
from anyvit.deploy.load_report import summarize
from anyvit.errors import MissingExtraError, SettingError
from anyvit.evaluation.intervals import wilson
from tests.deploy.stub_server import Stub, free_port, prediction, serving

AT_ONCE = np.zeros(4)


@pytest.fixture(scope="module")
def running():
    with serving(Stub()) as stub:
        yield stub


@pytest.fixture
def server(running):
    running.reset()
    return running


@pytest.mark.parametrize("shape", SHAPES)
def test_arrivals_follow_from_the_seed(shape):
    first, again, other = (SHAPES[shape](50, 40, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or not np.array_equal(first, other)
    assert np.all(np.diff(first) >= 0)
    assert first[0] >= 0
    assert first[-1] <= 40


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_rate_is_what_was_asked(shape):
    counts = [len(SHAPES[shape](20, 30, seed=seed)) for seed in range(200)]
    assert np.mean(counts) == pytest.approx(600, rel=0.02)
    assert np.std(counts) == pytest.approx(np.sqrt(600), rel=0.25)


def test_gaps_of_poisson_are_exponential():
    gaps = np.diff(poisson(100, 500, seed=3))
    assert np.mean(gaps) == pytest.approx(0.01, rel=0.03)
    assert np.std(gaps) == pytest.approx(0.01, rel=0.03)
    assert np.mean(gaps > 0.01) == pytest.approx(np.exp(-1), abs=0.01)


def test_bursts_have_the_shape_they_are_said_to_have():
    times = bursts(1000, 60, seed=0)
    place = times % 10  # six periods of ten seconds: calm to 4, burst to 6, calm to 10
    rates = [np.sum((place >= low) & (place < high)) / (6 * (high - low)) for low, high in ((0, 4), (4, 6), (6, 10))]
    np.testing.assert_allclose(rates, [500, 3000, 500], rtol=0.05)
    assert len(bursts(1000, 3, seed=0)) == len(poisson(1000, 3, seed=0))
    only = bursts(100, 20, seed=0, factor=2.0, share=0.5)
    assert np.all((only % 10 >= 2.5) & (only % 10 <= 7.5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: poisson(0, 1, seed=0), "rate is 0: it must be a finite number above 0"),
        (lambda: poisson(1, float("inf"), seed=0), "seconds is inf"),
        (lambda: bursts(1, 1, seed=0, share=0.5), "bursts of 3 times the rate for 0.5 of the time exceed the mean"),
        (lambda: fire_and_wait("http://x", [], AT_ONCE), "there are no pictures to send"),
        (lambda: fire_and_wait("http://x", [b""], AT_ONCE, labels=["a", "b"]), "2 labels for 1 pictures"),
        (lambda: fire_and_wait("http://x", [b""], AT_ONCE, leave_early=2), "leave_early is 2: it is a share"),
        (lambda: fire_and_wait("http://x", [b""], AT_ONCE, time_limit=0), "time_limit is 0"),
        (lambda: fire_and_wait("http://x", [b""], AT_ONCE, deadline=-1), "deadline is -1"),
        (lambda: summarize([], 0.05), "nothing was sent"),
    ],
)
def test_values_outside_their_range(call, words):
    with pytest.raises(SettingError, match=words):
        call()


def test_without_aiohttp_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MissingExtraError, match=r"aiohttp is not installed. .* 'anyvit\[serve\]'"):
        fire_and_wait("http://x", [b""], AT_ONCE)


def test_what_is_sent(server):
    pictures = [bytes([number]) * 3 for number in range(5)]
    sent = fire_and_wait(f"{server.url}/", pictures, np.linspace(0, 0.05, 10), deadline=0.03, seed=4)
    bodies = [body for _, body in server.heard]
    assert sorted(bodies) == sorted(2 * pictures)
    assert sorted(pictures[each.picture] for each in sent[:5]) == pictures  # each once before any again
    headers = server.heard[0][0]
    assert headers["content-type"] == "application/octet-stream"
    assert headers["anyvit-deadline"] == "30ms"
    again = fire_and_wait(server.url, pictures, np.linspace(0, 0.05, 10), seed=4)
    assert [each.picture for each in again] == [each.picture for each in sent]
    assert "anyvit-deadline" not in server.heard[-1][0]


def test_an_answer_is_written_down(server):
    (sent,) = fire_and_wait(server.url, [b"x"], np.zeros(1), labels=["dog"])
    assert (sent.outcome, sent.status, sent.label, sent.truth) == ("answered", 200, "cat", "dog")
    assert (sent.candidate, sent.waited, sent.computed) == ("full-torch", 0.0015, 0.004)
    assert 0 <= sent.lag <= sent.latency


def test_the_loop_is_open(server):
    """Nothing is answered before all have come: who waits for answers before going on never ends."""
    everybody = []

    async def answer(body):
        everybody.append(body)
        while len(everybody) < 5:
            await asyncio.sleep(0.01)
        return prediction()

    server.answer = answer
    sent = fire_and_wait(server.url, [b"x"], np.linspace(0, 0.2, 5))
    assert [each.outcome for each in sent] == ["answered"] * 5
    assert sent[0].latency >= 0.2


def test_a_stall_counts_for_all_that_were_due_in_it(server):
    stalls = [0.3]

    def answer(body):
        if stalls:
            time.sleep(stalls.pop())  # nobody else is answered meanwhile
        return prediction()

    server.answer = answer
    due = np.array([0.0, 0.1, 0.2])
    sent = fire_and_wait(server.url, [b"x"], due)
    assert all(each.latency >= 0.25 - each.scheduled for each in sent)


def test_waiting_for_a_connection_counts(server):
    async def answer(body):
        await asyncio.sleep(0.05)
        return prediction()

    server.answer = answer
    sent = fire_and_wait(server.url, [b"x"], AT_ONCE, connections=1)
    assert max(each.latency for each in sent) >= 0.19


@pytest.mark.parametrize(
    ("told", "outcome", "error"),
    [
        (prediction(), "answered", None),
        ((429, {"type": "overloaded"}), "shed", None),
        ((504, {"type": "deadline_exceeded"}), "expired", None),
        ((503, {"type": "not_ready"}), "not_ready", None),
        ((422, {"type": "unreadable_image"}), "refused", "unreadable_image"),
        ((404, ["no", "words"]), "refused", "status 404"),
        ((500, {"type": "engine_failed"}), "failed", "engine_failed"),
        ((307, {}), "failed", "status 307"),
        (b"hello", "failed", "not an answer of `anyvit serve`"),
        ({"predictions": []}, "failed", "not an answer of `anyvit serve`"),
    ],
)
def test_every_answer_has_its_outcome(server, told, outcome, error):
    server.answer = lambda body: told
    (sent,) = fire_and_wait(server.url, [b"x"], np.zeros(1))
    assert (sent.outcome, sent.error) == (outcome, error)
    assert sent.status == (told[0] if isinstance(told, tuple) else 200)


def test_nobody_there_and_nobody_answering(server):
    (sent,) = fire_and_wait(f"http://127.0.0.1:{free_port()}", [b"x"], np.zeros(1))
    assert (sent.outcome, sent.status, sent.error) == ("failed", None, "ECONNREFUSED")
    server.answer = lambda body: asyncio.sleep(5)
    (sent,) = fire_and_wait(server.url, [b"x"], np.zeros(1), time_limit=0.1)
    assert (sent.outcome, sent.status, sent.error) == ("failed", None, "time limit")
    assert sent.latency >= 0.1


def test_clients_that_leave_early(server):
    server.answer = lambda body: asyncio.sleep(5)
    sent = fire_and_wait(server.url, [b"x"], AT_ONCE, leave_early=1.0, leave_after=0.1)
    assert {each.outcome for each in sent} == {"left"}
    assert all(each.latency >= 0.09 for each in sent)
    server.answer = lambda body: prediction()
    sent = fire_and_wait(server.url, [b"x"], AT_ONCE, leave_early=1.0, leave_after=30.0)
    assert {each.outcome for each in sent} == {"answered"}
    some = fire_and_wait(server.url, [b"x"], np.zeros(100), leave_early=0.5, leave_after=0.0)
    assert 20 < sum(each.outcome == "left" for each in some) < 80


def test_ctrl_c_keeps_what_was_sent(server):
    def answer(body):
        if len(server.heard) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            return asyncio.sleep(5)
        return prediction()

    server.answer = answer
    sent = fire_and_wait(server.url, [b"x"], np.array([0, 0.1, 0.2, 600]))
    assert len(sent) == 3
    assert sent[-1].outcome == "left"


def test_inside_an_event_loop_with_news(server):
    events, into = [], []
    sent = asyncio.run(fire(server.url, [b"x"], np.linspace(0, 0.7, 8), into=into, progress=events.append))
    assert sorted(into, key=lambda each: each.scheduled) == sent
    assert events[0].message == "1 sent"
    assert "answered" in events[-1].message
    assert all(0 <= event.done <= 1 for event in events)


def made(outcome="answered", latency=0.01, **rest):
    return Sent(**{"scheduled": 0.0, "picture": 0, "outcome": outcome, "latency": latency, "lag": 0.0, **rest})


def test_rates_and_percentiles():
    random = np.random.default_rng(0)
    latencies = random.gamma(2.0, 0.01, 200)
    sent = [made(latency=latency, scheduled=index / 100) for index, latency in enumerate(latencies)]
    report = summarize(sent, 0.02, seconds=4)
    expected = 1000 * np.percentile(latencies, [50, 90, 95, 99, 100])
    assert list(report.latency_ms) == ["p50", "p90", "p95", "p99", "max"]
    np.testing.assert_allclose(list(report.latency_ms.values()), expected)
    assert report.inside == pytest.approx(np.mean(latencies <= 0.02))
    assert (report.asked_rate, report.achieved_rate) == (50, 50)
    assert summarize(sent, 0.02).asked_rate == pytest.approx(200 / 1.99)
    assert (report.accuracy, report.accuracy_inside, report.notes) == (None, None, ())


def test_what_is_late_or_lost_is_wrong():
    right, wrong = {"label": "cat", "truth": "cat"}, {"label": "dog", "truth": "cat"}
    lost = {"truth": "cat"}
    sent = [
        *(made(picture=number, candidate="full", **right) for number in range(6)),
        made(picture=6, latency=0.2, candidate="small", **right),
        made(picture=7, candidate="small", **wrong),
        *(made(outcome, picture=8 + place, **lost) for place, outcome in enumerate(("shed", "expired", "failed"))),
        made("left", picture=11, **lost),  # before the objective had passed: it says nothing
        made("left", 0.2, picture=12, **lost),
    ]
    report = summarize(sent, 0.05)
    assert report.outcomes == dict.fromkeys(OUTCOMES, 0) | {
        "answered": 8, "shed": 1, "expired": 1, "failed": 1, "left": 2,
    }  # fmt: skip
    assert report.inside == 7 / 12
    assert (report.accuracy.value, report.accuracy.interval, report.accuracy.count) == (7 / 8, wilson(7, 8), 8)
    assert (report.accuracy_inside.value, report.accuracy_inside.interval) == (6 / 12, wilson(6, 12))
    assert report.candidates == {"full": 6 / 8, "small": 2 / 8}


def test_a_picture_sent_often_counts_once_in_the_interval():
    sent = [made(picture=number % 10, label="cat", truth="cat" if number % 10 else "dog") for number in range(1000)]
    assert summarize(sent, 0.05).accuracy.interval == wilson(9, 10)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_report_is_json(outcome):
    report = summarize([made(outcome, truth="cat", error="x")], 0.05)
    text = json.dumps(report.to_json(), allow_nan=False)
    told = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert told["outcomes"][outcome] == told["sent"] == 1
    assert told["errors"] == {"x": 1}


def test_doubts_about_the_client_are_said():
    (note,) = summarize([made(lag=0.05)], 0.05).notes
    assert "The client itself was late: 50.0 ms at the 99th percentile" in note
    (note,) = summarize([made("failed", error="EMFILE")], 0.05).notes
    assert "raise `ulimit -n`" in note
