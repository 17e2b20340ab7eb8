import math

import pytest

from anyvit.errors import SettingError
from anyvit.scaling.spread.vote import Missing, accuracy_by_missing


def test_every_set_of_up_to_eight_members():
    seen = []
    found = accuracy_by_missing(8, lambda kept: seen.append(tuple(kept)) or len(kept) / 8)
    assert [entry.sets for entry in found] == [math.comb(8, missing) for missing in range(8)]
    assert len(set(seen)) == len(seen) == 2**8 - 1
    assert all(entry.mean == entry.worst == 1 - entry.missing / 8 for entry in found)


def test_mean_and_worst():
    worth = (0.5, 0.3, 0.1)
    found = accuracy_by_missing(3, lambda kept: sum(worth[member] for member in kept))
    assert found[1] == Missing(1, pytest.approx(0.6), pytest.approx(0.4), 3)


def test_beyond_eight_sets_are_sampled_by_seed():
    def record(seed):
        seen = []
        found = accuracy_by_missing(20, lambda kept: seen.append(tuple(kept)) or 1.0, seed=seed, sets=30)
        return found, seen

    found, seen = record(0)
    assert [entry.sets for entry in found] == [1, 20, *[30] * 17, 20]
    assert len(set(seen)) == len(seen)
    assert all(list(kept) == sorted(set(kept)) for kept in seen)
    assert seen == record(0)[1]
    assert seen != record(1)[1]


def test_nothing_to_miss():
    with pytest.raises(SettingError, match="not 0 and 64"):
        accuracy_by_missing(0, len)
