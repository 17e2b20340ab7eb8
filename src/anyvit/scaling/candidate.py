"""A candidate: levers and a backend, as plain data, and what it turned out to cost and to be worth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyvit.costs.budget import COSTS
from anyvit.errors import SettingError
from anyvit.protocols import UNCHANGED, Setting

LONGEST_ID = 100
"""Characters of an id, which is a folder's name too."""


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
    def parts(self) -> tuple[Candidate, ...]:
        """The plain candidates that it is made of: itself. Files in a bundle are by their ids."""
        return (self,)

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
class Cascade:
    """Two candidates of one set of weights: `large` answers too where `small` is unsure.

    Args:
        small: Answers first.
        large: Answers where the largest probability of `small` is below the threshold; then its answer counts.
        threshold: 0 asks `large` never, anything above 1 always.

    Raises:
        SettingError: Both are the same candidate, or the threshold is negative or no number.
    """

    small: Candidate
    large: Candidate
    threshold: float

    def __post_init__(self) -> None:
        if self.small == self.large:
            raise SettingError(f"a cascade needs two candidates: {self.small.id} was given twice.")
        if not self.threshold >= 0:
            raise SettingError(f"the threshold of a cascade is a confidence from 0 up, not {self.threshold}.")

    @property
    def id(self) -> str:
        """A short name, unique within a bundle: `heads1-torch-then-full-torch-below0.8`, or a digest for a long one."""
        name = f"{self.small.id}-then-{self.large.id}-below{self.threshold}"
        if len(name) <= LONGEST_ID:
            return name
        return f"cascade-{hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]}"

    @property
    def parts(self) -> tuple[Candidate, ...]:
        """The plain candidates that it is made of. Files in a bundle are by their ids; it has none of its own."""
        return self.small, self.large

    def to_json(self) -> dict[str, Any]:
        return {"cascade": [part.to_json() for part in self.parts], "threshold": self.threshold}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cascade:
        small, large = (Candidate.from_json(part) for part in data["cascade"])
        return cls(small, large, float(data["threshold"]))


def candidate_from_json(data: Mapping[str, Any]) -> Candidate | Cascade:
    """What `to_json` of a candidate or of a cascade has written."""
    return Cascade.from_json(data) if "cascade" in data else Candidate.from_json(data)


@dataclass(frozen=True, slots=True)
class Result:
    """A candidate with its figures.

    `costs` is keyed by the names of the budget language, in base units (seconds, bytes, images per second, counts);
    `accuracy` is that on the validation split, None until it was evaluated; `unstable` says that the timing was;
    `escalated` is the share of the validation images that went on to the large part of a cascade.
    """

    candidate: Candidate | Cascade
    costs: Mapping[str, float] = field(default_factory=dict)
    accuracy: float | None = None
    unstable: bool = False
    escalated: float = 0.0

    @property
    def id(self) -> str:
        return self.candidate.id

    @property
    def plain(self) -> Candidate:
        """The candidate, where it is no cascade."""
        (candidate,) = self.candidate.parts
        return candidate

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            **self.candidate.to_json(),
            "costs": dict(self.costs),
            "accuracy": self.accuracy,
            "unstable": self.unstable,
            **({"escalated": self.escalated} if self.escalated else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        escalated = data.get("escalated", 0.0)
        return cls(candidate_from_json(data), data["costs"], data["accuracy"], data["unstable"], escalated)


def costs_of(results: Sequence[Result]) -> list[str]:
    """The costs known of some of the results, in the order of the budget language; an expected latency if it tells."""
    known = {cost for result in results for cost in result.costs}
    if all(result.costs.get("latency_expected") in (None, result.costs.get("latency")) for result in results):
        known.discard("latency_expected")
    return [cost for cost in COSTS if cost in known]
