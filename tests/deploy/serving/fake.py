"""A service around an engine that lives in the test: answers are those of the bundle, times are as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import torch

from anyvit.deploy.bundle import Bundle
from anyvit.deploy.runtime import Predictor
from anyvit.deploy.serving.engine_link import EngineDied, Holding
from anyvit.deploy.serving.menu import Menu
from anyvit.deploy.serving.service import Service
from anyvit.errors import AnyViTError

SECONDS: Mapping[str, float] = {"full-torch": 4e-3, "heads3-torch": 2e-3, "heads2-torch": 1e-3}
"""Of one image, by candidate of the tiny bundle."""


class FakeEngine:
    """Answers as the engine process does; `die`, `fail` and `stall` make it do otherwise, once.

    Attributes:
        asked: Candidate and number of images of each batch after calibration.
        starts: How often it was started.
    """

    pid = 1

    def __init__(self, bundle: Bundle, seconds: Mapping[str, float] = SECONDS) -> None:
        self._predictor, self.seconds = Predictor(bundle), dict(seconds)
        self.asked: list[tuple[str, int]] = []
        self.starts = 0
        self.die, self.fail, self.stall = False, False, 0.0
        self.broken: AnyViTError | None = None

    async def start(self, progress=None):
        self.starts += 1
        if self.broken:
            raise self.broken
        return Holding(tuple(self.seconds), {}, 1_000_000)

    async def run(self, id, pixels, *, patience, worst=False):
        await asyncio.sleep(self.stall or self.seconds[id] * len(pixels))
        if not worst:
            self.asked.append((id, len(pixels)))
        if self.die:
            self.die = False
            raise EngineDied("the engine was killed by signal 9")
        if self.fail:
            self.fail = False
            raise AnyViTError("out of memory")
        side = self._predictor.preprocessing.image_size
        batch = torch.frombuffer(bytearray(b"".join(pixels)), dtype=torch.uint8).view(-1, side, side, 3)
        answer = self._predictor.asking(self._predictor.bundle.result(id))(batch.permute(0, 3, 1, 2))()[0]
        return answer, self.seconds[id]

    async def keep(self, ids):
        self.seconds = {id: self.seconds[id] for id in ids}
        return 1_000_000

    async def stop(self):
        """Nothing to end."""


def service(bundle: Bundle, *, objective: float = 0.2, engine: FakeEngine | None = None, **options) -> Service:
    """A service of the tiny bundle, not started."""
    engine = engine or FakeEngine(bundle)
    menu = Menu.open(bundle.folder, tuple(engine.seconds))
    return Service(menu, engine, objective, **options)  # type: ignore[arg-type]
