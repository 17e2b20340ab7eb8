"""The front's side of the engine: starts the process, asks it, and says when it is gone."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anyvit.costs.fresh import new_python, same_paths
from anyvit.deploy.serving import frames
from anyvit.errors import retold
from anyvit.protocols import Event, Progress, silent

PIPE_BYTES = 1 << 20
"""Of what goes to the engine, so that a batch goes in one piece where the system allows it."""

PATIENCE_S = 600.0
"""For the loading of one candidate: a runtime may compile it."""

LEAVE_S = 5.0
"""For an engine that is told to end."""


class EngineDied(Exception):  # noqa: N818  (not an error of the user's: the engine is started again)
    """The process has ended, or no longer answers. Its batch is not answered."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What an engine that has started holds: ids of candidates, reasons for those left out, and its memory in bytes."""

    resident: tuple[str, ...]
    left_out: dict[str, str]
    memory: int


class Engine:
    """One engine process at a time.

    Args:
        folder: The bundle, or placed folder.
        candidates: Ids to hold, those that matter most first.
        memory: Bytes that the process may hold.
    """

    def __init__(self, folder: Path, candidates: Sequence[str], memory: float) -> None:
        self.folder, self.candidates, self.memory = folder, tuple(candidates), memory
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """The process, where there is one."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self, progress: Progress = silent) -> Holding:
        """Start the process and wait until it holds its candidates.

        Raises:
            AnyViTError: What keeps it from that.
            EngineDied: It ended meanwhile.
        """
        await self.stop()
        self._process = await asyncio.create_subprocess_exec(
            *new_python("anyvit.deploy.serving.engine"),
            env=same_paths(),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,  # Ctrl-C is for the front, which lets the engine finish
        )
        _widen(self._process)
        try:
            return await self._open(progress)
        except BaseException:
            await self.stop()
            raise

    async def run(
        self, id: str, pixels: Sequence[bytes], *, patience: float, worst: bool = False
    ) -> tuple[Tensor, float]:
        """Answer a batch.

        Args:
            id: The candidate.
            pixels: Of each image, row by row, S x S x 3.
            patience: Seconds after which the process counts as dead, and is killed.
            worst: Of a cascade: let every image go on to its large part.

        Returns:
            Probabilities (B, K), and the seconds that computing took.

        Raises:
            AnyViTError: The batch cannot be answered; the engine goes on.
            EngineDied: The process has ended or was killed.
        """
        question = frames.pack({"run": id, "images": len(pixels), "worst": worst}, b"".join(pixels))
        words, payload = await self._ask(question, patience)
        if "failed" in words:
            raise retold(*words["failed"])
        return torch.frombuffer(bytearray(payload), dtype=torch.float32).view(len(pixels), -1), words["seconds"]

    async def keep(self, ids: Sequence[str]) -> int:
        """Hold these alone from now on, in engines that are started anew as well.

        Returns:
            The memory of the process in bytes.

        Raises:
            EngineDied: The process has ended.
        """
        self.candidates = tuple(ids)
        words, _ = await self._ask(frames.pack({"keep": self.candidates}), PATIENCE_S)
        return int(words["bytes"])

    async def stop(self) -> None:
        """End the process, where there is one; a batch that it computes is finished first, if it is soon."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin:
            process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), LEAVE_S)
        if process.returncode is None:
            process.kill()
            await process.wait()

    async def _open(self, progress: Progress) -> Holding:
        opening = {"open": str(self.folder), "candidates": self.candidates, "memory": self.memory}
        words, _ = await self._ask(frames.pack(opening), PATIENCE_S)
        while "loading" in words:
            progress(Event("serve", f"loading {words['loading']}"))
            words, _ = await self._receive(PATIENCE_S)
        if "failed" in words:
            raise retold(*words["failed"])
        return Holding(tuple(words["resident"]), words["left_out"], words["bytes"])

    async def _ask(self, question: bytes, patience: float) -> frames.Frame:
        if self._process is None or self._process.stdin is None:
            raise EngineDied("the engine does not run")
        try:
            self._process.stdin.write(question)
            await self._process.stdin.drain()
        except (ConnectionError, RuntimeError) as error:
            raise EngineDied(await self._last_words()) from error
        return await self._receive(patience)

    async def _receive(self, patience: float) -> frames.Frame:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            frame = await asyncio.wait_for(frames.receive(self._process.stdout), patience)
        except TimeoutError as error:
            self._process.kill()
            raise EngineDied(f"the engine did not answer within {patience:.3g} s and was ended") from error
        if frame is None:
            raise EngineDied(await self._last_words())
        return frame

    async def _last_words(self) -> str:
        assert self._process is not None
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), LEAVE_S)
        status = self._process.returncode
        return f"the engine was killed by signal {-status}" if status and status < 0 else "the engine ended"


def _widen(process: Process) -> None:
    """A pipe that takes a batch at once, on Linux."""
    if sys.platform != "linux":
        return
    import fcntl

    transport = process.stdin.transport if process.stdin else None
    pipe = transport.get_extra_info("pipe") if transport else None
    if pipe is not None:
        with suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
