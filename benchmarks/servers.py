"""What the serving benchmarks share: servers in processes of their own, on a core of their own, and load from another.

The client must not take time from the server, nor the other way round. So this process, which sends, stays on the last
core, and every server, with whatever processes it starts, on the first.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyvit.deploy.load import Sent, fire_and_wait, import_client
from anyvit.jobs.load_pictures import Pictures, labelled_pictures
from anyvit.protocols import silent

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

    def metric(self, name: str) -> float:
        """The sum of one of its Prometheus metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)


@contextmanager
def started(command: Sequence[str], port: int, *, ready: str = "/readyz") -> Iterator[Server]:
    """A server on the first core, from when it is ready until the end of the `with`."""
    process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, {FIRST}))
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        wait_until_ready(server, ready)
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()


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


def machine() -> Mapping[str, Any]:
    """What ran where."""
    return {"server_core": FIRST, "client_core": LAST}
