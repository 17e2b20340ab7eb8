"""What candidates there are: the legal combinations of levers and runtimes, in the one order they compose in.

Shapes come before merges, merges before token reduction, and all of them before the runtime with its precision: each
step works on what the ones before have left, and a runtime is built of the final graph. Stages, refusals and conflicts
are read from the levers and backends; none is known here by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from anyvit.errors import ModelError
from anyvit.protocols import UNCHANGED, Backend, Device, Lever
from anyvit.scaling.candidate import Candidate, Step

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Space:
    """The candidates that levers and backends make of one model.

    Attributes:
        levers: The levers, in the order of their stages.
        choices: For each lever its settings as steps, from the mildest to the strongest; last the runtimes.
    """

    levers: tuple[Lever, ...]
    choices: tuple[tuple[Step, ...], ...]

    @classmethod
    def of(
        cls, model: nn.Module, levers: Sequence[Lever], backends: Sequence[Backend], device: Device, threads: int = 1
    ) -> Space:
        """The space of `model` on `device`.

        Raises:
            ModelError: A lever, or every backend, refuses `model`; the message gives the reasons.
        """
        for lever in levers:
            if reason := lever.why_not(model):
                raise ModelError(f"lever {lever.name!r} does not apply: {reason}")
        refusals = {backend.name: backend.why_not(model) for backend in backends}
        usable = [backend for backend in backends if refusals[backend.name] is None]
        if not usable:
            raise ModelError(f"no backend runs this model: {'; '.join(f'{k}: {v}' for k, v in refusals.items())}")
        ordered = tuple(sorted(levers, key=lambda lever: lever.stage))
        steps = [tuple(Step(lever.name, setting) for setting in lever.settings(model)) for lever in ordered]
        more = {"threads": threads} if threads > 1 else {}
        runtimes = [Step(b.name, {**setting, **more}) for b in usable for setting in b.settings(device)]
        return cls(ordered, (*steps, tuple(runtimes)))

    def __iter__(self) -> Iterator[Candidate]:
        """Every candidate, from the mildest to the strongest; one runtime after the other for each shape."""
        for picked in product(*self.choices):
            if candidate := self._legal(picked):
                yield candidate

    @property
    def size(self) -> int:
        """How many combinations there are, refused ones included."""
        return prod(len(steps) for steps in self.choices)

    def ends(self) -> list[Candidate]:
        """The unshrunk model, and what is smallest: all levers at their strongest, or each alone where they do not go
        together. On every runtime."""
        mildest = [steps[0] for steps in self.choices[:-1]]
        strongest = [steps[-1] for steps in self.choices[:-1]]
        alone = [[*mildest[:n], step, *mildest[n + 1 :]] for n, step in enumerate(strongest)]
        together = self._legal((*strongest, self.choices[-1][0])) is not None
        shapes = [mildest, *([strongest] if together else alone)] if strongest else [mildest]
        return [Candidate(tuple(shape), runtime) for shape in shapes for runtime in self.choices[-1]]

    def at(self, places: Sequence[int]) -> Candidate | None:
        """The candidate of one place in each of `choices`; None where two of its levers do not go together."""
        return self._legal(tuple(steps[place] for steps, place in zip(self.choices, places, strict=True)))

    def _legal(self, picked: tuple[Step, ...]) -> Candidate | None:
        *steps, runtime = picked
        active = {
            lever.name: lever for lever, step in zip(self.levers, steps, strict=True) if step.setting != UNCHANGED
        }
        if any(other in active for lever in active.values() for other in lever.conflicts()):
            return None
        return Candidate(tuple(steps), runtime)
