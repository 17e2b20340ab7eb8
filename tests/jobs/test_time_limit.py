"""Times, as people say them."""

from __future__ import annotations

import pytest

from anyvit.errors import SettingError
from anyvit.jobs.fit import fit
from anyvit.jobs.time_limit import seconds_of
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("20m", 1200),
        ("2h", 7200),
        ("1h30m", 5400),
        (" 1 h 30 min ", 5400),
        ("1.5H", 5400),
        ("45 sec", 45),
        ("0.5s", 0.5),
    ],
)
def test_seconds_of(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "20 minutes please", "-5m", "1d", "five", "1h-30m", "nan s"])
def test_what_is_no_time(text):
    with pytest.raises(SettingError, match=rf"^cannot read the time {text!r}\. Write it like 90s, 20m or 1h30m\.$"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["0s", "0h0m"])
def test_no_time_at_all(text):
    with pytest.raises(SettingError, match="the time must be above 0"):
        seconds_of(text)


@pytest.mark.slow
def test_a_run_ends_in_time_with_a_finished_bundle(photos, tmp_path, hasty):
    bundle = fit(str(photos), model=TINY, budget="params<=1M", time="12s", out=str(tmp_path / "out"))
    assert bundle.document["finished"]
    assert 0 < bundle.document["history"][-1]["seconds"] < 12
