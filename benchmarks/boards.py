"""What the benchmarks of spread models share: a model to place, workers held to a share of a core, and load."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import anyvit
from anyvit.deploy.bundle import Bundle
from anyvit.deploy.spread.coordinator import Coordinator
from anyvit.scaling.spread.plan import Plan

CPU_GROUPS = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
PERIOD_US = 4000
"""Of the quota: short, so that a board of half a core is one at half the speed, for work of some milliseconds too."""


def untrained(model: str, folder: Path) -> Bundle:
    """A bundle of a model that has seen a few pictures of noise: what it costs does not depend on what it learned."""
    random, photos = np.random.default_rng(0), folder / "photos"
    for label in ("a", "b"):
        (photos / label).mkdir(parents=True, exist_ok=True)
        for number in range(10):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(photos / label / f"{number}.png")
    return anyvit.fit(
        str(photos), model=model, levers="none", backends="torch", epochs=0.1, out=str(folder / "bundle"), anyway=True
    )


def why_no_quota() -> str | None:
    """Why no CPU quota can be set here, or None."""
    root = _cpu_root()
    if root is None:
        return "there is no cgroup with a CPU quota"
    return None if os.access(root, os.W_OK) and os.geteuid() == 0 else "setting a CPU quota needs root"


def _cpu_root() -> Path | None:
    return next((root for root in CPU_GROUPS if (root / "cgroup.procs").exists()), None)


@contextmanager
def core_share(name: str, share: float) -> Iterator[Path]:
    """A control group whose processes get so much of a core; its `cgroup.procs` takes them in."""
    root = _cpu_root()
    assert root is not None
    group = root / f"anyvit-{name}"
    group.mkdir(exist_ok=True)
    quota = int(share * PERIOD_US)
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
    else:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota))
    try:
        yield group
    finally:
        for _ in range(50):
            if not (group / "cgroup.procs").read_text().strip():
                break
            time.sleep(0.1)
        group.rmdir()


def confined(group: Path, command: Sequence[str], *, core: int = 0) -> list[str]:
    """`command`, within a control group and on one core: a quota is handed out core by core, and gets lost there."""
    on_core = ["taskset", "-c", str(core % (os.cpu_count() or 1))]
    return [*on_core, "sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *command]


def command(*arguments: str) -> list[str]:
    """A command of AnyViT, as a process."""
    return [sys.executable, "-m", "anyvit", *arguments]


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@contextmanager
def running(commands: Sequence[Sequence[str]]) -> Iterator[list[subprocess.Popen]]:
    """Processes that run meanwhile; they are up when each has printed a line."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(subprocess.Popen(each, stdout=subprocess.PIPE, text=True, env=ONE_THREAD))
            for each in commands
        ]
        try:
            for process in started:
                assert process.stdout is not None
                process.stdout.readline()
            yield started
        finally:
            for process in started:
                process.terminate()


def pictures(count: int, size: int) -> torch.Tensor:
    """Noise as uint8 pictures (count, 1, 3, size, size)."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 1, 3, size, size), np.uint8))


def latencies(coordinator: Coordinator, pixels: torch.Tensor, seconds: float) -> list[float]:
    """Seconds of answers asked for one after the other."""
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        answer = coordinator.ask(pixels).answer()
        found.append(time.perf_counter() - begun)
        assert answer.voted == answer.of, dict(answer.missing)
    return found


def enough(plan: Plan) -> int:
    """Questions under way that keep everyone busy: twice what the predicted rate and latency ask for."""
    return 2 + math.ceil(2 * plan.throughput * plan.latency_s)


def throughput(coordinator: Coordinator, pixels: torch.Tensor, seconds: float, *, under_way: int) -> float:
    """Answers a second with several questions under way at all times."""
    waiting = [coordinator.ask(pixels) for _ in range(under_way)]
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        answer = waiting.pop(0).answer()
        assert answer.voted == answer.of, dict(answer.missing)
        waiting.append(coordinator.ask(pixels))
        done += 1
    elapsed = time.perf_counter() - begun
    for asked in waiting:
        asked.answer()
    return done / elapsed


def write_devices(file: Path, boards: Sequence[dict], hub: dict | None = None) -> Path:
    """A `devices.yaml`; JSON is YAML too."""
    file.write_text(json.dumps({"devices": list(boards), **({"hub": hub} if hub else {})}, indent=2))
    return file
