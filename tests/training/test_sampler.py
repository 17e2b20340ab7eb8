"""The draw of head counts; the reference's own series is among the golden vectors."""

import random

import pytest

from anyvit.errors import SettingError
from anyvit.training.objectives.sampler import HeadSampler


@pytest.mark.parametrize("weights", [None, [30, 30, 40], [0, 0.5, 1]])
def test_a_draw_depends_on_the_step_alone(weights):
    generator = random.Random(7)
    expected = [generator.choices([3, 6, 12], weights)[0] for _ in range(50)]
    sampler = HeadSampler([3, 6, 12], weights, seed=7)
    assert [sampler.draw(step) for step in range(50)] == expected
    assert HeadSampler([3, 6, 12], weights, seed=7).draw(37) == expected[37]
    assert sampler.draw(3) == expected[3]


@pytest.mark.parametrize(
    ("heads", "weights", "words"),
    [
        ([], None, r"heads must list every head count once, and at least one: got \[\]"),
        ([3, 3], None, r"heads must list every head count once, and at least one: got \[3, 3\]"),
        ([3, 6], [1], r"weights must be one for each of heads \[3, 6\]: got \[1\]"),
        ([3, 6], [1, -1], r"weights must be finite and not negative: got \[1, -1\]"),
        ([3, 6], [1, float("nan")], r"weights must be finite and not negative: got \[1, nan\]"),
        ([3, 6], [0, 0], r"weights must not all be 0: got \[0, 0\]"),
    ],
)
def test_wrong_lists_are_refused(heads, weights, words):
    with pytest.raises(SettingError, match=f"^{words}$"):
        HeadSampler(heads, weights)


def test_no_draw_before_the_first_step():
    with pytest.raises(SettingError, match=r"^step must be 0 or more: got -1$"):
        HeadSampler([1]).draw(-1)
