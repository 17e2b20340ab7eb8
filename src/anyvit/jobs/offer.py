"""Which levers and runtimes a run tries, by the names it was given, and why it does not try the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyvit.backends import BACKENDS, backend_named
from anyvit.costs.device import this_device
from anyvit.errors import ModelError
from anyvit.protocols import Backend, Lever, Stage
from anyvit.scaling.shrink import LEVERS, lever_named
from anyvit.scaling.space import Space

if TYPE_CHECKING:
    from torch import nn

EAGER = BACKENDS[:1]
"""PyTorch as it is: what runs without being built, and so is looked at first and while a run trains."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a run may try.

    Attributes:
        levers: Those that were named. None: all that go with the model; before training, those of the shape only.
        backends: The runtimes.
        threads: Threads of a model when it answers.
        trained: The model is trained already: levers take it as it is.
    """

    levers: tuple[Lever, ...] | None
    backends: tuple[Backend, ...]
    threads: int
    trained: bool = False

    @classmethod
    def of(cls, levers: str, backends: str, threads: int, *, trained: bool = False) -> Offer:
        """An offer by the arguments of a command: names, separated by commas; `auto`; no levers: `none`.

        Raises:
            SettingError: There is no such lever or backend.
        """
        named = None if levers == "auto" else () if levers == "none" else tuple(map(lever_named, _names(levers)))
        runtimes = BACKENDS if backends == "auto" else tuple(map(backend_named, _names(backends)))
        return cls(named, runtimes, threads, trained)

    @property
    def is_eager(self) -> bool:
        """Whether nothing has to be built."""
        return {backend.name for backend in self.backends} <= {backend.name for backend in EAGER}

    def levers_for(self, network: nn.Module) -> list[Lever]:
        """The levers that go with a model.

        Raises:
            ModelError: Some are named, and none of them does.
        """
        if self.levers is None:
            tried = [lever for lever in LEVERS if self.trained or lever.stage is Stage.SHAPE]
            return [lever for lever in tried if not lever.why_not(network)]
        able = [lever for lever in self.levers if not lever.why_not(network)]
        if self.levers and not able:
            reasons = "; ".join(f"{lever.name!r}: {lever.why_not(network)}" for lever in self.levers)
            raise ModelError(f"no lever that was named applies: {reasons}")
        return able

    def space(self, network: nn.Module) -> Space:
        """All candidates of a model."""
        return Space.of(network, self.levers_for(network), self.backends, this_device(), self.threads)

    def eager_space(self, network: nn.Module) -> Space:
        """Those candidates that take no building: the shapes, in PyTorch as it is."""
        shapes = [lever for lever in self.levers_for(network) if lever.stage is Stage.SHAPE]
        return Space.of(network, shapes, EAGER, this_device(), self.threads)

    def skipped(self, network: nn.Module) -> Mapping[str, str]:
        """Why levers and runtimes are not tried, by name."""
        levers = LEVERS if self.levers is None else self.levers
        reasons = {lever.name: lever.why_not(network) for lever in levers}
        reasons |= {backend.name: backend.why_not(network) for backend in self.backends}
        return {name: reason for name, reason in reasons.items() if reason}

    def absent(self) -> list[str]:
        """What extras and tools would add here."""
        told = (backend.absent(this_device()) for backend in self.backends)
        return [words for words in told if words]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
