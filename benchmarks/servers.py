"""What the serving benchmarks share: servers in processes of their own, on a core of their own, and load from another.

The client must not take time from the server, nor the other way round. So this process, which sends, stays on the last
core, and every server, with whatever processes it starts, on the first.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from anyvit.deploy.load import Sent, fire_and_wait, import_client, poisson
from anyvit.deploy.load_report import LoadReport, summarize
from anyvit.jobs.load_pictures import Pictures, labelled_pictures
from anyvit.protocols import silent

PAUSE = 2.0
"""Seconds of a load at the begin of a turn that do not count, in which levels and connections settle."""

FIRST, LAST = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Server:
    """A server that has started."""

    url: str
    process: subprocess.Popen[bytes]

    def told(self, path: str) -> Any:
        """What it says at a path, as JSON."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def served(self) -> list[dict[str, Any]]:
        """What `anyvit serve` tells of the candidates that it serves, the most accurate first."""
        return [each for each in self.told("/v1/model")["candidates"] if each["served"]]

    def metric(self, name: str) -> float:
        """The sum of one of its Prometheus metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process and to those that this has started in its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextmanager
def started(command: Sequence[str], port: int, *, ready: str = "/readyz") -> Iterator[Server]:
    """A server on the first core, from when it is ready until the end of the `with`."""
    process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, {FIRST}), start_new_session=True)
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        wait_until_ready(server, ready)
        yield server
    finally:
        process.terminate()
        server.signal(signal.SIGCONT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        server.signal(signal.SIGKILL)


@contextmanager
def alone(server: Server, others: Iterable[Server]) -> Iterator[None]:
    """Let the others stand still meanwhile: some ask their queues for work all the time, on the core of this one."""
    still = [each for each in others if each is not server]
    for each in still:
        each.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for each in still:
            each.signal(signal.SIGCONT)


def wait_until_ready(server: Server, path: str = "/readyz") -> None:
    """Until it answers 200 there."""
    end = time.monotonic() + 300
    while True:
        with suppress(OSError):
            urllib.request.urlopen(server.url + path, timeout=5).close()
            return
        if server.process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the server at {server.url} does not become ready")
        time.sleep(0.3)


def anyvit_serve(bundle: str, slo: str, port: int, *options: str) -> list[str]:
    """The command of `anyvit serve`."""
    return [sys.executable, "-m", "anyvit", "serve", bundle, "--slo", slo, "--port", str(port), *options]


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def stay_on_the_last_core() -> None:
    """This process sends."""
    import_client()
    os.sched_setaffinity(0, {LAST})


def pictures_for(server: Server, data: str) -> Pictures:
    """All the pictures of the test split of `data`, with their labels."""
    return labelled_pictures(data, server.told("/v1/model")["classes"], 10_000, seed=0, progress=silent)


def send(server: Server, pictures: Pictures, arrivals: np.ndarray, **options: Any) -> list[Sent]:
    """Send pictures at these times, and wait for the answers."""
    return fire_and_wait(server.url, pictures.contents, arrivals, labels=pictures.labels, **options)


@dataclass
class Turns:
    """What becomes of a load that a server gets in several turns: a machine that is slow for a while is so for all.

    Attributes:
        sent: The requests, as if turns followed each other without a pause.
        seconds: Of all turns.
        counts: By how much Prometheus metrics have grown in them.
    """

    sent: list[Sent] = field(default_factory=list)
    seconds: float = 0.0
    counts: dict[str, float] = field(default_factory=dict)

    def take(
        self, server: Server, pictures: Pictures, rate: float, seconds: float, *, seed: int, counts: Sequence[str] = ()
    ) -> None:
        """Send once more, after a pause."""
        send(server, pictures, poisson(rate, PAUSE, seed=seed + 1000))
        before = {name: server.metric(name) for name in counts}
        sent = send(server, pictures, poisson(rate, seconds, seed=seed), seed=seed)
        for name, value in before.items():
            self.counts[name] = self.counts.get(name, 0.0) + server.metric(name) - value
        self.sent += [replace(each, scheduled=self.seconds + each.scheduled) for each in sent]
        self.seconds += seconds

    def report(self, slo: float) -> LoadReport:
        """Of all turns together."""
        return summarize(self.sent, slo, seconds=self.seconds)


def computed_alone(candidate: Mapping[str, Any]) -> float:
    """Images a second that the engine computes of a served candidate, with nothing else to do."""
    return max(1e3 * int(size) / ms for size, ms in candidate["batch_ms"].items())


def machine() -> Mapping[str, Any]:
    """What ran where."""
    return {"server_core": FIRST, "client_core": LAST}
