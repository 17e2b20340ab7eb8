"""A small HSViT placed on boards, and the workers that hold its parts, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch

from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.spread.coordinator import Coordinator
from anyvit.deploy.spread.membership import Rhythm
from anyvit.deploy.spread.parts import Part
from anyvit.deploy.spread.placed import Placed, write_placed
from anyvit.deploy.spread.worker import Worker
from anyvit.models.hsvit import HSViT
from anyvit.scaling.spread.boards import Board
from anyvit.scaling.spread.plan import Plan, Share
from anyvit.scaling.spread.vote import Missing

GROUPS = 4
PREPROCESSING = Preprocessing(8)
CLASSES = tuple("0123456789")
BUNDLE = SimpleNamespace(classes=CLASSES, preprocessing=PREPROCESSING)
KNOWN = [Missing(missing, 0.9 - 0.1 * missing, 0.85 - 0.1 * missing, 4) for missing in range(GROUPS)]
QUICK = Rhythm(heartbeat=0.1, patience=1.0, longest=0.2)


@cache
def model() -> HSViT:
    """With statistics that differ from channel to channel, as after training."""
    torch.manual_seed(0)
    built = HSViT(img_size=8, kernels=(16, 32), pools=(2, 1), num_groups=GROUPS, embed_dim=32, num_heads=4)
    with torch.no_grad():
        for _ in range(3):
            built.train()(torch.rand(16, 3, 8, 8))
    return built.eval()


def pictures(count: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits_of(pixels: torch.Tensor, groups: Sequence[int] = range(GROUPS)) -> torch.Tensor:
    """What one process says, with the votes of these groups."""
    tokens = model().forward_features(PREPROCESSING.normalize_batch(pixels))
    return model().forward_head(tokens[:, list(groups)])


def plan(deal: Sequence[Sequence[int]], trunk: str, addresses: Sequence[str]) -> Plan:
    per_group = model().tokens_per_group * model().embed_dim * 4
    shares = [
        Share(
            board=Board(f"board-{number}", address, memory=1e9),
            groups=tuple(groups),
            memory=1000,
            bytes_in=len(groups) * per_group if trunk == "hub" else 3 * 8 * 8,
            bytes_out=len(groups) * model().embed_dim * 4,
            compute_s=0.001,
            network_s=0.001,
        )
        for number, (groups, address) in enumerate(zip(deal, addresses, strict=True), start=1)
    ]
    return Plan.of("groups", trunk, shares, 0.001)


def deal(boards: int) -> list[list[int]]:
    return [list(range(GROUPS))[place::boards] for place in range(boards)]


def place(folder: Path, boards: int, trunk: str, addresses: Sequence[str] | None = None) -> Placed:
    addresses = addresses or [f"127.0.0.1:{7001 + number}" for number in range(boards)]
    return write_placed(folder, BUNDLE, model(), plan(deal(boards), trunk, addresses), known=KNOWN)


class Fleet:
    """Workers over gRPC, one a board; a test may put something else in the place of what answers."""

    def __init__(self, folder: Path, boards: int, trunk: str = "boards") -> None:
        from anyvit.deploy.spread.transports.grpc_server import BoardServer

        self.serve = BoardServer
        self.servers = {number: BoardServer(_Nobody(), "127.0.0.1:0") for number in range(1, boards + 1)}
        self.addresses = [f"127.0.0.1:{server.port}" for server in self.servers.values()]
        self.placed = self.place(folder, boards, trunk)
        for number in range(1, boards + 1):
            self.servers[number]._worker = self.worker(number)

    def place(self, folder: Path, boards: int, trunk: str) -> Placed:
        return place(folder, boards, trunk, self.addresses)

    def worker(self, number: int) -> Worker:
        return Worker(Part.open(self.placed.folder / f"part-{number}.safetensors"))

    def put(self, number: int, worker: object) -> None:
        """Let something else answer for a board."""
        self.servers[number]._worker = worker

    def stop(self, number: int) -> None:
        self.servers.pop(number).stop(grace=0)

    def start(self, number: int) -> None:
        self.servers[number] = self.serve(self.worker(number), self.addresses[number - 1])

    def close(self) -> None:
        for number in list(self.servers):
            self.stop(number)


class _Nobody:
    def hello(self) -> bytes:
        return b""

    def answer(self, content: bytes) -> bytes:
        return b""


@contextmanager
def fleet(folder: Path, boards: int, trunk: str = "boards") -> Iterator[Fleet]:
    running = Fleet(folder, boards, trunk)
    try:
        yield running
    finally:
        running.close()


@contextmanager
def coordinator(running: Fleet, **arguments: object) -> Iterator[Coordinator]:
    options: Mapping[str, object] = {"deadline": 5.0, "rhythm": QUICK, **arguments}
    with Coordinator.open(running.placed.folder, **options) as opened:
        yield opened
