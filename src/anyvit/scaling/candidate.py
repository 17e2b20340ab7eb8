"""A candidate: levers and a backend, as plain data, and what it turned out to cost and to be worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from anyvit.protocols import UNCHANGED, Setting


@dataclass(frozen=True, slots=True)
class Step:
    """A lever or a backend by name, and its setting."""

    name: str
    setting: Setting = field(default_factory=dict)

    def __str__(self) -> str:
        values = [f"{key}{value}" if not isinstance(value, str) else value for key, value in self.setting.items()]
        return "-".join(values) or self.name


@dataclass(frozen=True, slots=True)
class Candidate:
    """The steps that turn the one set of weights into a runner: levers in order, then the backend."""

    levers: tuple[Step, ...]
    backend: Step
    tuned: bool = False  # its weights were trained further in this shape, and lie in the bundle beside the others

    @property
    def id(self) -> str:
        """A short name, unique within a bundle and good as a folder's name: `heads3-torch-bfloat16`."""
        shape = [str(step) for step in self.active] or ["full"]
        precision = [str(self.backend)] if self.backend.setting else []
        return "-".join([*shape, *(["tuned"] if self.tuned else []), self.backend.name, *precision])

    @property
    def active(self) -> tuple[Step, ...]:
        """The levers that change something."""
        return tuple(step for step in self.levers if step.setting != UNCHANGED)

    def to_json(self) -> dict[str, Any]:
        return {
            "levers": [{"name": step.name, "setting": dict(step.setting)} for step in self.levers],
            "backend": {"name": self.backend.name, "setting": dict(self.backend.setting)},
            **({"tuned": True} if self.tuned else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        levers = tuple(Step(**step) for step in data["levers"])
        return cls(levers, Step(**data["backend"]), data.get("tuned", False))


@dataclass(frozen=True, slots=True)
class Result:
    """A candidate with its figures.

    `costs` is keyed by the names of the budget language, in base units (seconds, bytes, images per second, counts);
    `accuracy` is that on the validation split, None until it was evaluated; `unstable` says that the timing was.
    """

    candidate: Candidate
    costs: Mapping[str, float] = field(default_factory=dict)
    accuracy: float | None = None
    unstable: bool = False

    @property
    def id(self) -> str:
        return self.candidate.id

    def to_json(self) -> dict[str, Any]:
        figures = {key: value for key, value in asdict(self).items() if key != "candidate"}
        return {"id": self.id, **self.candidate.to_json(), **figures}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        return cls(Candidate.from_json(data), data["costs"], data["accuracy"], data["unstable"])
