"""A run that is killed over and over ends like one that was not, and nothing half-written is ever taken for whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from anyvit.deploy.bundle import Bundle
from anyvit.errors import BundleError
from tests.conftest import TINY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

EPOCHS = 6
ROOT = Path(__file__).parents[2]
ELSEWHERE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
"""Another file system than pytest's, where there is one."""


class Commands:
    """The process that forks commands: to start Python anew for each would spend the test's time on imports."""

    def __init__(self, process):
        self.process = process

    def start(self, *words):
        self.process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self):
        return int(self.process.stdout.readline())

    def run(self, *words):
        self.start(*words)
        return self.status()

    def kill(self, *words, when, after):
        """Start a command and kill it `after` seconds from when `when()` holds. Returns whether it had ended well."""
        child = self.start(*words)
        while not when():
            if not alive(child):
                return self.status() == 0
            time.sleep(0.002)
        time.sleep(after)
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(child, signal.SIGKILL)
        return self.status() == 0


def alive(child):
    """False for a process that has ended, whether its parent has noticed or not."""
    try:
        return Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def commands():
    with (
        tempfile.TemporaryDirectory(dir=ELSEWHERE) as temporary,  # what a killed process leaves there goes with it
        subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "TMPDIR": temporary, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
        ) as process,
    ):
        yield Commands(process)
        process.stdin.close()


def fit_words(photos, out):
    return ("fit", photos, "--model", TINY, "--budget", "params<=1M", "--epochs", EPOCHS, "--out", out)


@pytest.fixture(scope="module")
def uninterrupted(commands, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert commands.run(*fit_words(photos, out)) == 0
    return Bundle.load(out)


def assert_whole(out):
    """Whatever a crash has left: no bundle yet, or one that answers."""
    if (out / "bundle.json").exists():
        bundle = Bundle.load(out)
        bundle.model()
        bundle.training_images()
        assert bundle.document["finished"] in (True, False)


STAGES = {
    "planning": lambda out: out / "run" / "arguments.json",
    "training": lambda out: out / "run" / "training.json",
    "checkpoints": lambda out: out / "run" / "last.ckpt",
    "drafts": lambda out: out / "bundle.json",
}


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_it_ends_like_an_uninterrupted_run(commands, uninterrupted, photos, tmp_path, seed):
    chance, out = random.Random(seed), tmp_path / "out"
    for mark in STAGES.values():
        commands.kill(*fit_words(photos, out), when=mark(out).exists, after=chance.uniform(0, 0.4))
        assert_whole(out)
    for _ in range(3):  # from the end of training on: scoring, bundling, the report
        commands.kill(*fit_words(photos, out), when=lambda: True, after=chance.uniform(0.5, 2.5))
        assert_whole(out)
    assert commands.run(*fit_words(photos, out)) == 0
    assert_same(Bundle.load(out), uninterrupted)


@pytest.mark.parametrize("step", ["score", "write", "report", "finish"])
def test_killed_after_training_it_ends_like_an_uninterrupted_run(commands, uninterrupted, photos, tmp_path, step):
    """At the very moment: the child kills itself there."""
    out = tmp_path / "out"
    assert commands.run(f"kill at {step}", *fit_words(photos, out)) == -signal.SIGKILL
    assert_whole(out)
    assert commands.run(*fit_words(photos, out)) == 0
    assert_same(Bundle.load(out), uninterrupted)


def assert_same(bundle, expected):
    assert bundle.document["weights"]["sha256"] == expected.document["weights"]["sha256"]
    assert bundle.chosen.id == expected.chosen.id
    assert bundle.document["test"] == expected.document["test"]
    assert [entry["loss"] for entry in bundle.document["history"]] == [
        entry["loss"] for entry in expected.document["history"]
    ]
    left = sorted(path.name for path in bundle.folder.iterdir())
    names = [bundle.document["weights"]["file"], bundle.document["data"]["training_images"]["file"]]
    assert left == sorted(["bundle.json", "report.html", "run", *names])
    assert sorted(path.name for path in (bundle.folder / "run").iterdir()) == ["arguments.json", "lock", "logs"]


@pytest.mark.parametrize(("format", "name"), [("onnx", "model.onnx"), ("openvino", "openvino")])
def test_a_killed_export_leaves_nothing_that_is_taken_for_whole(commands, finished, tmp_path, format, name):
    bundle = shutil.copytree(finished.folder, tmp_path / "bundle")
    target, chance = bundle / name, random.Random(0)
    for _ in range(2):
        ended = commands.kill(
            *("export", bundle, "--format", format),
            when=lambda: any(bundle.glob(".partial-*")) or target.exists(),
            after=chance.uniform(0, 0.3),
        )
        if not ended:
            assert not target.exists() or is_whole(target)
        Bundle.load(bundle).model()
    assert commands.run("export", bundle, "--format", format) == 0
    assert is_whole(target)
    assert not list(bundle.glob(".partial-*"))


def is_whole(target):
    from anyvit.deploy import standalone

    model = target if target.is_file() else next(target.glob("*.xml"))
    return bool(standalone.open_model(str(model)))


def test_half_a_bundle_is_refused(finished, tmp_path):
    """Cut anywhere, `bundle.json` is not read as a whole one."""
    bundle = shutil.copytree(finished.folder, tmp_path / "bundle")
    content = (bundle / "bundle.json").read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        (bundle / "bundle.json").write_bytes(content[:length])
        with pytest.raises(BundleError, match="is damaged"):
            Bundle.load(bundle)
