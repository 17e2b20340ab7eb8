"""A training that is killed over and over ends with the weights of one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anyvit.training.checkpoint import LAST, read_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Trainings:
    """The process that forks trainings."""

    def __init__(self, process):
        self.process = process

    def start(self, folder, workers):
        self.process.stdin.write(f"{folder} {workers}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def exit_status(self):
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def trainings():
    other_file_system = "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.training.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": other_file_system},
        cwd=Path(__file__).parents[2],
    ) as process:
        yield Trainings(process)
        process.stdin.close()


@pytest.fixture(scope="module")
def uninterrupted(trainings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainings.start(folder, 0)
    assert trainings.exit_status() == 0
    return load_file(folder / "result.safetensors")


def kill_after_checkpoints(child, folder, count, extra):
    """Kill `child` a moment after its `count`-th new checkpoint, which may be while it writes the next."""
    seen, last = 0, None
    while seen <= count:
        if (folder / "result.safetensors").exists():
            return
        try:
            written = (folder / LAST).stat().st_mtime_ns
        except FileNotFoundError:
            written = None
        seen, last = seen + (written != last), written
        time.sleep(0.001)
    time.sleep(extra)
    with suppress(ProcessLookupError):  # it may have ended by itself
        os.kill(child, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_training_ends_like_an_uninterrupted_one(trainings, uninterrupted, tmp_path, workers):
    chance = random.Random(workers)
    stopped_at = []
    while True:
        child = trainings.start(tmp_path, workers)
        kill_after_checkpoints(child, tmp_path, chance.randint(2, 7), chance.uniform(0, 0.03))
        if trainings.exit_status() == 0:
            break
        stopped_at.append(read_checkpoint(tmp_path)["global_step"])
    result = load_file(tmp_path / "result.safetensors")
    assert result.keys() == uninterrupted.keys()
    for name, tensor in result.items():
        assert torch.equal(tensor, uninterrupted[name]), name
    assert len(stopped_at) >= 2
    assert any(step % 18 for step in stopped_at)  # in mid-epoch
