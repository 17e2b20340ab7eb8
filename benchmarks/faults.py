"""Boards that are killed, paused or answer wrongly: every request is answered within its deadline, without them.

    python benchmarks/faults.py
    python benchmarks/faults.py --requests 10000

Four workers, each a process of its own, hold the groups of `hsvit_c2a2_32` (untrained: what counts here is who votes
and when, not what for). The first form goes through a timetable under load and notes each phase; the second keeps
asking while workers are killed, paused, corrupted, restarted, and replaced by one with another board's part, at random.
Each answer is compared with that of one process for the groups that are said to have voted: no other may be in it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.spread.coordinator import Coordinator
from anyvit.deploy.spread.membership import Rhythm
from anyvit.deploy.spread.parts import Part
from anyvit.deploy.spread.placed import Placed, write_placed
from anyvit.deploy.spread.transports.grpc_server import BoardServer
from anyvit.deploy.spread.wire import Message
from anyvit.deploy.spread.worker import Worker
from anyvit.errors import SpreadError
from anyvit.models import create_model
from anyvit.scaling.spread.boards import Board, Fleet
from anyvit.scaling.spread.planner import plan_groups
from anyvit.scaling.spread.sizes import HSViTShape
from interleaved import write_result

MODEL, BOARDS, DEADLINE, CLIENTS = "hsvit_c2a2_32", 4, 0.5, 4
RHYTHM = Rhythm(heartbeat=0.5, patience=1.0, longest=2.0)
IMPORTED = ["anyvit.deploy.spread.transports.grpc_server", "anyvit.deploy.spread.coordinator", "anyvit.costs.device"]
"""What takes long to import, and is imported once for all workers, so that one that starts again starts at once."""
FAULTS = ("flipped bits", "not finite", "wrong shape")


class Faulty(Worker):
    """A worker whose answers go wrong in the next way at each SIGUSR1, and are right again after the last."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self.fault = len(FAULTS)
        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "fault", (self.fault + 1) % (len(FAULTS) + 1)))

    def answer(self, content: bytes) -> bytes:
        honest = super().answer(content)
        if self.fault == len(FAULTS):
            return honest
        if FAULTS[self.fault] == "flipped bits":
            return honest[:-3] + bytes([honest[-3] ^ 16]) + honest[-2:]
        message = Message.from_bytes(honest)
        wrong = message.tensor * float("nan") if FAULTS[self.fault] == "not finite" else message.tensor[..., 1:]
        return replace(message, tensor=wrong).to_bytes()


def serve(part: str, listen: str) -> None:
    """The process of a board."""
    torch.set_num_threads(1)
    server = BoardServer(Faulty(Part.open(Path(part))), listen)
    while server:
        time.sleep(3600)


class Boards:
    """The processes, and what can happen to them."""

    def __init__(self, folder: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(IMPORTED)
        ports = [_free_port() for _ in range(BOARDS)]
        self.placed = _place(folder, [f"127.0.0.1:{port}" for port in ports])
        self._processes: dict[int, Any] = {}
        for number in range(1, BOARDS + 1):
            self.start(number)

    def start(self, number: int, *, part: int | None = None) -> None:
        """Start a board, with the part of another one if told so."""
        file = self.placed.folder / f"part-{part or number}.safetensors"
        address = self.placed.plan.shares[number - 1].board.address
        process = self._context.Process(target=serve, args=(str(file), address), daemon=True)
        process.start()
        self._processes[number] = process

    def kill(self, number: int) -> None:
        self._processes[number].kill()
        self._processes[number].join()

    def pause(self, number: int) -> None:
        os.kill(self._processes[number].pid, signal.SIGSTOP)

    def wake(self, number: int) -> None:
        os.kill(self._processes[number].pid, signal.SIGCONT)

    def corrupt(self, number: int) -> None:
        """The next way of answering wrongly; after the last of them, the right one."""
        os.kill(self._processes[number].pid, signal.SIGUSR1)

    def end(self) -> None:
        for number in self._processes:
            self.kill(number)


class Load:
    """Clients that ask one image after the other, and what came of it."""

    def __init__(self, hub: Coordinator, pixels: torch.Tensor, whole: Callable[[list[int]], torch.Tensor]) -> None:
        self.hub, self.pixels, self.whole = hub, pixels, whole
        self.notes: list[tuple[float, float, int, tuple[str, ...]]] = []  # when, seconds, voted, who was missing
        self.ghosts = 0
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self.stop.is_set():
            begun = time.monotonic()
            try:
                answer = self.hub.ask(self.pixels).answer()
            except SpreadError:
                voted, missing, ghost = 0, tuple(part.board for part in self.hub.placed.parts), False
            else:
                voted, missing = answer.voted, tuple(answer.missing)
                there = [part for part in self.hub.placed.parts if part.board not in missing]
                groups = [group for part in there for group in part.members]
                ghost = not torch.allclose(answer.logits, self.whole(groups), rtol=0, atol=1e-5)
            with self._lock:
                self.notes.append((begun, time.monotonic() - begun, voted, missing))
                self.ghosts += ghost


def timetable(boards: Boards, hub: Coordinator, load: Load, seconds: float) -> list[Mapping[str, Any]]:
    """Each phase of the timetable, with what happened in it."""
    steps: list[tuple[str, Callable[[], None]]] = [
        ("all well", lambda: None),
        ("board-2 killed", lambda: boards.kill(2)),
        ("board-2 started again", lambda: boards.start(2)),
        ("board-3 paused (SIGSTOP)", lambda: boards.pause(3)),
        ("board-3 woken", lambda: boards.wake(3)),
        *((f"board-4: {fault}", lambda: boards.corrupt(4)) for fault in FAULTS),
        ("board-4 right again", lambda: boards.corrupt(4)),
        ("all well", lambda: None),
    ]
    phases = []
    for name, happen in steps:
        happen()
        begun, back = time.monotonic(), None
        while time.monotonic() < begun + seconds:
            time.sleep(0.02)
            if back is None and not hub.absent():
                back = time.monotonic() - begun
        phase = _phase(name, [note for note in load.notes if note[0] >= begun])
        phases.append({**phase, "all_back_after_s": back, "absent_at_its_end": hub.absent()})
        print(_line(phases[-1]), flush=True)
    return phases


def at_random(boards: Boards, load: Load, requests: int) -> dict[str, Any]:
    """Something happens to a board about twice a second, until so many requests were answered.

    At most two boards are unwell at a time; one of those is often made well again.
    """
    draw, happened, unwell, memory = random.Random(0), Counter[str](), dict[int, str](), list[int]()
    while len(load.notes) < requests:
        if len(load.notes) >= len(memory) * requests // 20:
            memory.append(_resident())
        number = draw.choice(list(unwell) if len(unwell) == 2 else range(1, BOARDS + 1))
        if number in unwell:
            what = _make_well(boards, number, unwell.pop(number))
        else:
            what = unwell[number] = draw.choice(("killed", "paused", "corrupted", "replaced"))
            _make_unwell(boards, number, what)
        happened[what] += 1
        time.sleep(draw.uniform(0.2, 0.8))
    memory.append(_resident())
    for number, what in unwell.items():
        _make_well(boards, number, what)
    return {"happened": dict(happened), "resident_bytes_along_the_way": memory, "ghosts_counted": load.ghosts}


def _make_unwell(boards: Boards, number: int, what: str) -> None:
    if what == "paused":
        boards.pause(number)
    elif what == "corrupted":
        boards.corrupt(number)
    else:
        boards.kill(number)
        if what == "replaced":
            boards.start(number, part=number % BOARDS + 1)


def _make_well(boards: Boards, number: int, what: str) -> str:
    if what == "paused":
        boards.wake(number)
        return "woken"
    if what != "killed":
        boards.kill(number)
    boards.start(number)
    return "started again"


def _phase(name: str, notes: list[tuple[float, float, int, tuple[str, ...]]]) -> dict[str, Any]:
    seconds = np.array([note[1] for note in notes])
    voted = Counter(note[2] for note in notes)
    return {
        "phase": name,
        "requests": len(notes),
        "within_deadline_plus_10_percent": float((seconds <= 1.1 * DEADLINE).mean()),
        "groups_voted": {str(count): voted[count] for count in sorted(voted)},
        "missing": dict(Counter(board for note in notes for board in note[3])),
        "latency_ms": {name: 1e3 * float(np.quantile(seconds, q)) for name, q in QUANTILES.items()},
        "resident_bytes": _resident(),
    }


QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "largest": 1.0}


def _line(phase: Mapping[str, Any]) -> str:
    latency = ", ".join(f"{name} {value:.0f}" for name, value in phase["latency_ms"].items())
    return (
        f"{phase['phase']:28} {phase['requests']:5} requests, {phase['within_deadline_plus_10_percent']:.1%} in time, "
        f"voted {phase['groups_voted']}, ms: {latency}, {phase['resident_bytes'] / 1e6:.0f} MB"
    )


def _place(folder: Path, addresses: list[str]) -> Placed:
    torch.manual_seed(0)
    model = create_model(MODEL).eval()
    boards = tuple(Board(f"board-{number}", address) for number, address in enumerate(addresses, start=1))
    plan = plan_groups(HSViTShape.of(model.arguments), Fleet(boards), 1e9, trunk="boards")
    bundle: Any = SimpleNamespace(classes=tuple("0123456789"), preprocessing=Preprocessing(32))
    return write_placed(folder, bundle, model, plan, known=())


def _whole(pixels: torch.Tensor) -> Callable[[list[int]], torch.Tensor]:
    """What one process says, with the votes of some groups."""
    torch.manual_seed(0)
    model = create_model(MODEL).eval()
    with torch.inference_mode():
        votes = model.forward_features(Preprocessing(32).normalize_batch(pixels))

    @torch.inference_mode()
    def logits(groups: list[int]) -> torch.Tensor:
        return model.forward_head(votes[:, groups])

    return logits


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """One of the two forms, and its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, help="at random, until so many were answered")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each phase of the timetable")
    parser.add_argument("--quick", action="store_true", help="a glance that only shows that it runs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        boards = Boards(Path(folder) / "placed")
        try:
            with Coordinator.open(boards.placed.folder, deadline=DEADLINE, rhythm=RHYTHM) as hub:
                while hub.absent():
                    time.sleep(0.1)
                begun = time.monotonic()
                load = Load(hub, pixels, _whole(pixels))
                result: dict[str, Any] = {"model": MODEL, "boards": BOARDS, "deadline_s": DEADLINE, "clients": CLIENTS}
                try:
                    if asked.requests:
                        result |= at_random(boards, load, asked.requests)
                        result |= _phase("at random", load.notes) | {"seconds": time.monotonic() - begun}
                        print(result)
                    else:
                        result["phases"] = timetable(boards, hub, load, 1.0 if asked.quick else asked.seconds)
                        result["ghosts_counted"] = load.ghosts
                finally:
                    load.end()
        finally:
            boards.end()
    write_result("faults-random" if asked.requests else "faults", result, quick=asked.quick)


if __name__ == "__main__":
    main()
