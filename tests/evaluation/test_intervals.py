import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from anyvit.errors import SettingError
from anyvit.evaluation.intervals import wilson

SAMPLES = st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@settings(deadline=None)
@given(SAMPLES, st.sampled_from([0.8, 0.95, 0.99]))
def test_as_scipy_has_it(sample, level):
    correct, total = sample
    expected = binomtest(correct, total).proportion_ci(level, method="wilson")
    assert wilson(correct, total, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@settings(deadline=None)
@given(SAMPLES)
def test_the_share_lies_within(sample):
    correct, total = sample
    low, high = wilson(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    assert (low, high) == pytest.approx(tuple(1 - end for end in reversed(wilson(total - correct, total))))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0, 0), "0 correct of 0"), ((5, 4), "5 correct of 4"), ((-1, 4), "-1 correct of 4"), ((1, 4, 1.0), "level 1.0")],
)
def test_what_is_no_share(arguments, words):
    with pytest.raises(SettingError, match=words):
        wilson(*arguments)
