import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyvit.costs.summary import Summary, summarize
from anyvit.errors import SettingError

TIMES = st.floats(min_value=1e-6, max_value=1e3)


def test_a_round_by_hand():
    # quartiles 2 and 4: 10 just stays, 10.1 would not; the interval has the ranks floor(2.5 - 2.19), ceil(2.5 + 2.19)
    assert summarize([3, 1, 2, 4, 10]) == Summary(5, 5, 3, 1.4, pytest.approx(7.6), pytest.approx(2 / 3), 1, 10)
    assert summarize([3, 1, 2, 4, 10.1]) == Summary(5, 4, 2.5, 1.3, pytest.approx(3.7), pytest.approx(0.6), 1, 4)


def test_one_run():
    assert summarize([0.5]) == Summary(1, 1, 0.5, 0.5, 0.5, 0.0, 0.5, 0.5)


@pytest.mark.parametrize("series", [[], [1.0, float("nan")], [float("inf")]])
def test_what_is_no_round(series):
    with pytest.raises(SettingError, match="must hold finite times"):
        summarize(series)


@settings(deadline=None)
@given(st.lists(TIMES, min_size=1, max_size=60))
def test_order(series):
    summary = summarize(series)
    assert summary.n_total == len(series) >= summary.n_kept >= len(series) * 3 // 4
    assert min(series) <= summary.p10 <= summary.median <= summary.p90 <= max(series)
    assert summary.ci_low <= summary.median <= summary.ci_high
    assert summary == summarize(series[::-1])


@settings(deadline=None)
@given(st.lists(TIMES, min_size=1, max_size=60), st.sampled_from([0.5, 1024.0]))
def test_units_do_not_matter(series, scale):
    summary, scaled = summarize(series), summarize([scale * time for time in series])
    assert scaled.median == pytest.approx(scale * summary.median)
    assert scaled.ci_high == pytest.approx(scale * summary.ci_high)
