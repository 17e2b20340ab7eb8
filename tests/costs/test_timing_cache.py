"""Latencies kept on disk: found again by all that matters, shared by processes, never trusted further than they go."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from anyvit.costs.timing import Latency
from anyvit.costs.timing_cache import TimingCache, better, default_folder

LATENCY = Latency(
    seconds=0.01,
    round_medians=(0.01, 0.0102, 0.0103),
    p95=0.012,
    rel_iqr=0.01,
    spread=0.03,
    unstable=False,
    interval=(0.0099, 0.0101),
    batch=1,
    threads=1,
    device="abc",
    state={"mhz": 2000.0},
    measured_at="2024-01-01T00:00:00+00:00",
)
SHAKY = replace(LATENCY, unstable=True, spread=0.5)
KEY = {"device": "abc", "backend": "torch", "setting": {}, "batch": 1, "shape": {"depth": 12, "heads": 3}}


def test_what_was_put_is_found_by_another(tmp_path):
    TimingCache(tmp_path).put(KEY, LATENCY)
    again = TimingCache(tmp_path)
    assert again.get(KEY) == LATENCY
    assert again.get(dict(reversed(KEY.items()))) == LATENCY


@pytest.mark.parametrize(
    "other",
    [{"device": "xyz"}, {"backend": "openvino"}, {"setting": {"precision": "bfloat16"}}, {"shape": {"depth": 13}}],
)
def test_another_device_backend_setting_or_shape_is_not_known(tmp_path, other):
    TimingCache(tmp_path).put(KEY, LATENCY)
    assert TimingCache(tmp_path).get({**KEY, **other}) is None


def test_nothing_is_known_of_a_new_folder(tmp_path):
    assert TimingCache(tmp_path / "new").get(KEY) is None
    assert not (tmp_path / "new").exists()


def test_the_folder_is_where_users_keep_caches(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("ANYVIT_CACHE", "/mine")
    assert default_folder() == Path("/mine")
    monkeypatch.delenv("ANYVIT_CACHE")
    assert default_folder() == Path("/caches/anyvit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "anyvit"
    assert TimingCache().folder == default_folder()


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (LATENCY, replace(LATENCY, seconds=0.009), "new"),  # the faster of two alike
        (LATENCY, replace(LATENCY, seconds=0.011), "old"),
        (SHAKY, replace(LATENCY, seconds=0.0105), "new"),  # a steady one confirms a shaky one
        (SHAKY, replace(LATENCY, seconds=0.02), "old"),  # this one was held up all the time
        (LATENCY, replace(SHAKY, seconds=0.0095), "old"),
    ],
)
def test_the_better_of_two_is_kept(tmp_path, old, new, kept):
    cache = TimingCache(tmp_path)
    cache.put(KEY, old)
    assert cache.put(KEY, new) == {"old": old, "new": new}[kept] == better(old, new) == better(new, old)
    assert TimingCache(tmp_path).get(KEY) == {"old": old, "new": new}[kept]


def test_two_writers_lose_nothing(tmp_path):
    def write(writer):
        cache = TimingCache(tmp_path)
        for depth in range(15):
            cache.put({**KEY, "shape": {"writer": writer, "depth": depth}}, LATENCY)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab"))
    cache = TimingCache(tmp_path)
    assert all(cache.get({**KEY, "shape": {"writer": w, "depth": d}}) == LATENCY for w in "ab" for d in range(15))


def test_a_damaged_line_is_told_and_the_others_count(tmp_path, caplog):
    cache = TimingCache(tmp_path)
    other = {**KEY, "batch": 8}
    cache.put(KEY, LATENCY)
    cache.put(other, LATENCY)
    (file,) = tmp_path.glob("*.jsonl")
    first, second = file.read_text().splitlines()
    file.write_text(f"{first[: len(first) // 2]}\n{second}\nnull\n[]\n")
    again = TimingCache(tmp_path)
    assert again.get(KEY) is None
    assert again.get(other) == LATENCY
    assert "3 of 4 timings in" in caplog.text
    assert "are damaged: they are measured again" in caplog.text
    again.put(KEY, LATENCY)
    assert len(file.read_text().splitlines()) == 2


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    cache = TimingCache(tmp_path / "file" / "cache")
    assert cache.put(KEY, LATENCY) == LATENCY
    assert cache.get(KEY) == LATENCY
    assert "timings are not kept in" in caplog.text
