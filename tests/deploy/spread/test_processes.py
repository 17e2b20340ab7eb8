"""Workers in processes of their own: killed, paused, ended, started again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time

import pytest
import torch

pytest.importorskip("grpc", reason="needs the extra spread")
from anyvit.jobs.worker import worker
from tests.deploy.spread.fleet import coordinator, logits_of, pictures, place

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


def run_worker(part, listen):
    torch.set_num_threads(1)
    worker(part, listen=listen)


class Processes:
    """A worker a board, each in a process."""

    def __init__(self, folder):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__])
        ports = [free_port() for _ in range(4)]
        self.placed = place(folder, 4, "boards", [f"127.0.0.1:{port}" for port in ports])
        self.running = {}
        for number in range(1, 5):
            self.start(number)

    def start(self, number):
        part = self.placed.folder / f"part-{number}.safetensors"
        address = self.placed.plan.shares[number - 1].board.address
        process = self.context.Process(target=run_worker, args=(str(part), address), daemon=True)
        process.start()
        self.running[number] = process

    def send(self, number, what):
        os.kill(self.running[number].pid, what)

    def end(self):
        for process in self.running.values():
            process.kill()
            process.join()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    running = Processes(tmp_path_factory.mktemp("processes") / "placed")
    yield running
    running.end()


@pytest.fixture
def hub(processes):
    with coordinator(processes, deadline=2.0) as hub:
        until(lambda: not hub.absent())
        yield hub


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_together_they_answer_as_one_process(hub):
    answer = hub.ask(pictures(3)).answer()
    assert answer.voted == 4
    torch.testing.assert_close(answer.logits, logits_of(pictures(3)), rtol=0, atol=1e-5)


def test_killed_and_started_again(processes, hub):
    processes.send(2, signal.SIGKILL)
    processes.running[2].join()
    answer = hub.ask(pictures(1)).answer()
    assert (answer.voted, set(answer.missing)) == (3, {"board-2"})
    processes.start(2)
    until(lambda: not hub.absent())
    assert hub.ask(pictures(1)).answer().voted == 4


def test_paused_and_woken(processes, hub):
    """A paused process keeps its connection: only deadlines tell."""
    processes.send(3, signal.SIGSTOP)
    try:
        answer = hub.ask(pictures(1)).answer()
        assert (answer.voted, set(answer.missing)) == (3, {"board-3"})
        assert "board-3" not in hub.ask(pictures(1)).answer().payload
    finally:
        processes.send(3, signal.SIGCONT)
    until(lambda: hub.ask(pictures(1)).answer().voted == 4)


@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_ends_well(processes, hub, what):
    processes.send(4, what)
    processes.running[4].join(30)
    assert processes.running[4].exitcode == 0
    assert hub.ask(pictures(1)).answer().voted == 3
    processes.start(4)
    until(lambda: not hub.absent())


def test_replaced_by_a_board_with_another_part(processes, hub):
    """At its address, another one is not counted in its place."""
    processes.send(1, signal.SIGKILL)
    processes.running[1].join()
    honest = processes.placed.folder / "part-1.safetensors"
    kept = honest.read_bytes()
    honest.write_bytes((processes.placed.folder / "part-2.safetensors").read_bytes())
    processes.start(1)
    until(lambda: "made for board-2" in hub.absent().get("board-1", ""))
    answer = hub.ask(pictures(1)).answer()
    torch.testing.assert_close(answer.logits, logits_of(pictures(1), (1, 2, 3)), rtol=0, atol=1e-5)
    honest.write_bytes(kept)
    processes.send(1, signal.SIGKILL)
    processes.running[1].join()
    processes.start(1)
    until(lambda: not hub.absent())
