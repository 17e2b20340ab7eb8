"""Functions run in several processes at once, as torchrun would start them.

`python -m tests.processes` reads a JSON list a line: how many, a function as `module:name`, its arguments. It forks as
many processes with torchrun's variables and prints their numbers, and once all have ended their exit statuses. To start
Python anew for each would spend the test's time on imports. As torchrun does, it ends all where one fails.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Processes:
    """Starts functions in several processes."""

    def __init__(self, starter, log):
        self.starter = starter
        self.log = log

    def start(self, size, function, *arguments):
        """The numbers of the processes, in the order of their ranks."""
        words = [size, f"{function.__module__}:{function.__name__}", [str(each) for each in arguments]]
        self.starter.stdin.write(json.dumps(words) + "\n")
        self.starter.stdin.flush()
        return json.loads(self.starter.stdout.readline())

    def statuses(self):
        return json.loads(self.starter.stdout.readline())

    def run(self, size, function, *arguments):
        """Run it to the end, which must be a good one everywhere."""
        self.start(size, function, *arguments)
        statuses = self.statuses()
        assert statuses == [0] * size, f"{statuses}\n{self.log.read_text()[-6000:]}"


@contextmanager
def starter(folder):
    log = folder / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        ) as process,
    ):
        yield Processes(process, log)
        process.stdin.close()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run(rank, size, port, function, arguments):
    """One of them: its exit status."""
    os.environ |= {
        **{"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)},
        **{"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"},
    }
    module, name = function.split(":")
    try:
        getattr(importlib.import_module(module), name)(*arguments)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        print(f"process {rank} of {size}, {function}", file=sys.stderr)
        traceback.print_exc()
        return 1
    return 0


def wait(children):
    """Their exit statuses; where one fails, the others are asked to end, and made to."""
    statuses, deadline = {}, None
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses and (ended := os.waitpid(child, os.WNOHANG))[0]:
                statuses[child] = os.waitstatus_to_exitcode(ended[1])
        if deadline is None and any(statuses.values()):
            deadline = time.monotonic() + 10
            kill(set(children) - set(statuses), signal.SIGTERM)
        elif deadline is not None and time.monotonic() > deadline:
            kill(set(children) - set(statuses), signal.SIGKILL)
        time.sleep(0.005)
    return [statuses[child] for child in children]


def kill(children, number):
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, number)


def serve():
    for line in sys.stdin:
        size, function, arguments = json.loads(line)
        port, children = free_port(), []
        for rank in range(size):
            if child := os.fork():
                children.append(child)
                continue
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # that one is for numbers alone
            status = run(rank, size, port, function, arguments)
            sys.stderr.flush()
            os._exit(status)
        print(json.dumps(children), flush=True)
        print(json.dumps(wait(children)), flush=True)


if __name__ == "__main__":
    import anyvit.training.trainer  # once, for all that are forked

    assert anyvit
    serve()
