"""What batches take: the table, and what is learned from batches."""

from __future__ import annotations

import pytest

from anyvit.deploy.serving.service_times import FADE_S, ServiceTimes
from anyvit.errors import SettingError

MEASURED = {"large": {1: 0.008, 2: 0.014, 4: 0.026}, "small": {1: 0.002, 4: 0.005}}


@pytest.fixture
def times():
    return ServiceTimes(MEASURED)


@pytest.mark.parametrize(
    ("id", "images", "seconds"),
    [
        ("large", 1, 0.008),
        ("large", 3, 0.020),
        ("large", 4, 0.026),
        ("small", 2, 0.003),
        ("large", 9, 2 * 0.026 + 0.008),
        ("small", 8, 0.010),
    ],
)
def test_between_sizes_it_is_linear_and_beyond_them_several_batches(times, id, images, seconds):
    assert times.table(id, images) == pytest.approx(seconds)
    assert times.seconds(id, images, 0.0) == pytest.approx(seconds)
    assert times.safe(id, images, 0.0) > seconds


def test_a_larger_batch_is_never_cheaper():
    assert ServiceTimes({"a": {1: 0.002, 2: 0.001, 4: 0.003}}).table("a", 2) == 0.002


@pytest.mark.parametrize(("images", "size"), [(1, 1), (3, 2), (4, 4), (100, 4)])
def test_a_batch_has_the_largest_size_that_is_filled(times, images, size):
    assert times.size_for("large", images) == size


def batches(times, truth, ids=MEASURED, sizes=(1, 2, 4), number=60):
    """Let batches of these candidates and sizes run, one after the other. Returns when the last has ended."""
    for n in range(number):
        id, size = list(ids)[n % len(ids)], sizes[n // len(ids) % len(sizes)]
        times.note(id, size, truth(id, size), n * 0.01)
    return number * 0.01


@pytest.mark.parametrize("ids", [["large"], ["large", "small"]])
def test_a_slower_machine_is_learned_for_all_candidates(times, ids):
    now = batches(times, lambda id, size: 2 * times.table(id, size), ids)
    assert times.seconds("large", 4, now) == pytest.approx(2 * 0.026, rel=0.05)
    assert times.seconds("small", 4, now) == pytest.approx(2 * 0.005, rel=0.25)
    if len(ids) == 2:
        assert times.seconds("small", 4, now) == pytest.approx(2 * 0.005, rel=0.05)


@pytest.mark.parametrize("ids", [["small"], ["large", "small"]])
def test_what_the_front_takes_is_added_and_does_not_make_large_candidates_look_slow(times, ids):
    def truth(id, size):
        return times.table(id, size) + size * 0.0012 + 0.001

    now = batches(times, truth, ids)
    for id in MEASURED:
        for size in (1, 4):
            assert times.seconds(id, size, now) == pytest.approx(truth(id, size), rel=0.15)


def test_a_faster_machine_is_learned_too(times):
    now = batches(times, lambda id, size: times.table(id, size) / 2)
    assert times.seconds("large", 4, now) == pytest.approx(0.013, rel=0.1)


def test_a_candidate_alone_may_be_slower(times):
    for n in range(100):
        times.note("large", 1, 3 * 0.008, n * 0.01)
        times.note("small", 1, 0.002, n * 0.01)
    assert times.seconds("large", 1, 1.0) == pytest.approx(3 * 0.008, rel=0.05)
    assert times.seconds("small", 1, 1.0) == pytest.approx(0.002, rel=0.05)


def test_without_news_the_table_holds_again(times):
    for n in range(40):
        times.note("large", 1, 5 * 0.008, n * 0.01)
    assert times.seconds("large", 1, 0.4) > 4 * 0.008
    assert times.seconds("large", 1, 0.4 + 6 * FADE_S) == pytest.approx(0.008, rel=0.02)


def test_one_pause_is_not_a_slow_machine(times):
    times.note("large", 1, 10.0, 0.0)
    assert times.seconds("large", 1, 0.0) < 2 * 0.008


def test_scatter_makes_it_careful(times):
    for n in range(100):
        times.note("large", 1, 0.008 * (1.5 if n % 2 else 0.5), n * 0.01)
    assert times.safe("large", 1, 1.0) > 1.8 * times.seconds("large", 1, 1.0) * 0.9
    assert times.safe("large", 1, 1.0) > times.safe("large", 1, 100.0)


@pytest.mark.parametrize("row", [{}, {1: 0.0}, {1: float("nan")}])
def test_what_was_not_measured_is_refused(row):
    with pytest.raises(SettingError, match="a needs the seconds of a batch"):
        ServiceTimes({"a": row})
