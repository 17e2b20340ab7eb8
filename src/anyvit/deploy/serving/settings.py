"""What a server is told, as plain data: so that it can be sent to wherever a replica of it runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anyvit.deploy.serving.engine_link import Engine
from anyvit.deploy.serving.intake import Limits
from anyvit.deploy.serving.menu import Menu
from anyvit.deploy.serving.service import Service
from anyvit.protocols import Progress, silent


@dataclass(frozen=True, slots=True)
class Settings:
    """How a folder is served.

    Attributes:
        folder: A bundle, or a folder placed on boards.
        objective: Seconds from the arrival of a request to its answer.
        candidates: Ids of those that may answer; None: all that are worth it.
        min_accuracy: None answers below this accuracy.
        memory: Bytes that the engine may hold; None: half of what is to be had.
        limits: What a request may have.
    """

    folder: str
    objective: float
    candidates: tuple[str, ...] | None = None
    min_accuracy: float | None = None
    memory: float | None = None
    limits: Limits = field(default_factory=Limits)

    def service(self, progress: Progress = silent) -> Service:
        """The service, not started.

        Raises:
            BundleError: The folder is damaged, or none that can be served.
            SettingError: An unknown candidate.
            BudgetError: None is accurate enough.
        """
        menu = Menu.open(self.folder, self.candidates, self.min_accuracy)
        memory = half_of_memory() if self.memory is None else self.memory
        engine = Engine(Path(self.folder), menu.by_need(), memory)
        return Service(menu, engine, self.objective, most_pixels=self.limits.pixels, progress=progress)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        names = data["candidates"]
        lists = {"candidates": None if names is None else tuple(names), "limits": Limits(**data["limits"])}
        return cls(**{**data, **lists})


def half_of_memory() -> float:
    """Half of the bytes that are to be had now; without a limit where the system does not tell."""
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 0.5 * next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return float("inf")
