"""What the tests of several rooms share: a small folder of pictures, hasty timing, and one finished run."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

import anyvit
from anyvit import cli
from tests.processes import starter

TINY = "hydravit_tiny_patch2_8"
HASTY = {"warmup_runs": 1, "warmup_s": 0.0, "runs": 3, "rounds": 1, "min_time_s": 0.0}
"""Timing for tests that need a figure, whatever it is."""


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """Ctrl-C is Python's, though a background job of a shell is to ignore it: tests press it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Timings that tests remember stay among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    """Runs functions in several processes at once: `processes.run(4, function, *arguments)`."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    with starter(tmp_path_factory.mktemp("processes")) as processes:
        yield processes


@contextmanager
def hurried():
    """A run that prices its candidates in a moment."""
    from anyvit.jobs import briefing, plan, searching

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "GLANCE", HASTY)
        patch.setattr(plan, "RANKING", HASTY)
        patch.setattr(searching, "RANKING", HASTY)
        patch.setattr(briefing, "RANKING", HASTY)
        yield


@pytest.fixture
def hasty():
    with hurried():
        yield


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command as the shell does; returns its exit status and what it wrote to the two streams."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["anyvit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return ended.value.code or 0, out, err

    return call


def write_photos(folder, counts, *, seed=0):
    """Noisy 8 px pictures in a folder per class; the first class is dark and the last one is light."""
    random = np.random.default_rng(seed)
    for place, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        base = 40 + 170 * place / max(1, len(counts) - 1)
        for number in range(count):
            pixels = np.clip(random.normal(base, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Forty pictures of two classes that are easily told apart. Tests read them and do not change them."""
    return write_photos(tmp_path_factory.mktemp("data") / "photos", {"dark": 20, "light": 20})


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The bundle of a short run on digits. Tests read it and do not change it."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    with hurried():
        return anyvit.fit("digits", model=TINY, budget="params<=1M", epochs=2, out=str(out))


@pytest.fixture
def own_bundle(finished, tmp_path):
    """The folder of a copy of it, to change."""
    return shutil.copytree(finished.folder, tmp_path / "bundle")
