import sys

import pytest

from anyvit.costs import memory
from anyvit.costs.memory import Memory, measure_here, peak_memory
from anyvit.errors import AnyViTError

HOLD = "tests.costs.called:hold"


@pytest.fixture
def small_runtime(monkeypatch):
    """This process stands in for the new one."""
    monkeypatch.setattr(memory, "_touch_runtime", lambda: None)


def test_the_peak_counts_though_it_was_given_back():
    needed = peak_memory(HOLD, 120)
    assert 115e6 < needed.rise < 135e6
    assert needed.process > needed.rise + 50e6  # the runtime


@pytest.mark.skipif(sys.platform != "linux", reason="the others tell no resident size")
def test_without_a_reset_the_rise_is_never_too_small(small_runtime, monkeypatch):
    def forbid(*_):
        raise PermissionError

    monkeypatch.setattr(memory.Path, "write_text", forbid)
    needed = Memory(**measure_here({"target": HOLD, "argument": 50}))
    assert needed.rise > 45e6


@pytest.mark.skipif(sys.platform == "win32", reason="resource is of Unix")
def test_without_files_of_linux(small_runtime, monkeypatch):
    monkeypatch.setattr(memory, "_told", lambda _: None)
    needed = Memory(**measure_here({"target": HOLD, "argument": 1}))
    assert needed.rise >= 0
    assert needed.process > 10e6


def test_a_platform_that_tells_nothing(small_runtime, monkeypatch):
    monkeypatch.setattr(memory, "_told", lambda _: None)
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(AnyViTError, match="peak memory cannot be measured on"):
        measure_here({"target": HOLD, "argument": 1})
