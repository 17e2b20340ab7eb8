"""The way that a scaling search took: every step, what it could have done, and what each choice cost and was worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from anyvit.costs.counts import Specification
from anyvit.errors import SettingError
from anyvit.scaling.design.shape import Worth, name_of

OK, OFF_TARGET, EXHAUSTED = "ok", "off_target", "exhausted"


@dataclass(frozen=True, slots=True)
class Trained:
    """A shape that was evaluated: what it costs and what it is worth."""

    spec: Specification
    cost: float
    accuracy: Worth


@dataclass(frozen=True, slots=True)
class Move:
    """A change of one factor, or an exchange of one for another; ok where it comes near enough to the target."""

    factor: str  # that grows
    status: str
    spec: Specification | None = None
    cost: float | None = None
    accuracy: Worth | None = None  # of those that are ok
    shrunk: str | None = None  # by one step, in an exchange

    @property
    def name(self) -> str:
        """`depth`, or in an exchange `depth for image_size`."""
        return f"{self.factor} for {self.shrunk}" if self.shrunk else self.factor

    @property
    def value(self) -> float | None:
        return None if self.spec is None else getattr(self.spec, self.factor)

    def __str__(self) -> str:
        if self.spec is None:
            return f"{self.name}: {self.status}"
        worth = f", accuracy {self.accuracy.value:.4g}" if self.accuracy else ""
        return f"{self.name} {self.value:g}: {self.status}, costs {self.cost:.4g}{worth}"

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"factor": self.factor, "status": self.status, "value": self.value, "cost": self.cost}
        data["spec"] = self.spec and asdict(self.spec)
        if self.accuracy:
            data |= {"accuracy": self.accuracy.value, "standard_error": self.accuracy.standard_error}
        return data | ({"shrunk": self.shrunk} if self.shrunk else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Move:
        spec = data["spec"] and Specification(**data["spec"])
        accuracy = Worth(data["accuracy"], data["standard_error"]) if "accuracy" in data else None
        return cls(data["factor"], data["status"], spec, data["cost"], accuracy, data.get("shrunk"))


@dataclass(frozen=True, slots=True)
class ScalingStep:
    """One step: the cost it aimed at, the moves it weighed, and the name of the one it made."""

    target: float
    candidates: tuple[Move, ...]
    chosen: str | None  # None: nothing was ok, or no exchange was better
    exchange: bool = False

    @property
    def winner(self) -> Move | None:
        return next((move for move in self.candidates if move.name == self.chosen), None)

    def __str__(self) -> str:
        kind = "exchange" if self.exchange else "growth"
        lines = [f"  {move}{' <- chosen' if move.name == self.chosen else ''}" for move in self.candidates]
        return "\n".join([f"{kind} to {self.target:.4g}", *lines])

    def to_json(self) -> dict[str, Any]:
        candidates = [move.to_json() for move in self.candidates]
        data = {"target": self.target, "candidates": candidates, "chosen": self.chosen}
        return data | ({"exchange": True} if self.exchange else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScalingStep:
        candidates = tuple(Move.from_json(move) for move in data["candidates"])
        return cls(data["target"], candidates, data["chosen"], data.get("exchange", False))


@dataclass(frozen=True)
class Trace:
    """The path from a base towards a budget, whole or so far."""

    base: Specification
    base_cost: float
    budget: float
    ratio: float
    tol: float
    steps: tuple[ScalingStep, ...] = ()

    @property
    def path(self) -> list[tuple[Specification, float]]:
        """The base and each shape that was chosen, with their costs, in order."""
        chosen = [step.winner for step in self.steps if step.winner]
        return [(self.base, self.base_cost), *((move.spec, move.cost) for move in chosen if move.spec and move.cost)]

    @property
    def final(self) -> Specification:
        return self.path[-1][0]

    @property
    def cost(self) -> float:
        """Of the final shape."""
        return self.path[-1][1]

    @property
    def reached(self) -> bool:
        """Whether the final shape is as near to the budget as was asked."""
        return self.cost * (1 + self.tol) >= self.budget

    @property
    def stuck(self) -> str | None:
        """Why the search could not go on, with the moves of its last step, or None."""
        if self.reached or not self.steps or self.steps[-1].exchange or self.steps[-1].chosen:
            return None
        return (
            f"stuck at {name_of(self.final)}, which costs {self.cost:.4g} of {self.budget:.4g}: no factor alone comes "
            f"within {self.tol:.0%} of the next target. Try a ratio below {self.ratio:g}, or a tol above "
            f"{self.tol:g}.\n{self.steps[-1]}"
        )

    @property
    def accuracies(self) -> dict[Specification, Worth]:
        """What every shape is worth that was evaluated."""
        moves = [move for step in self.steps for move in step.candidates]
        return {move.spec: move.accuracy for move in moves if move.spec and move.accuracy}

    def to_json(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("base_cost", "budget", "ratio", "tol")}
        return {"base": asdict(self.base), **numbers, "steps": [step.to_json() for step in self.steps]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trace:
        """What `to_json` has written.

        Raises:
            SettingError: It is something else.
        """
        try:
            steps = tuple(ScalingStep.from_json(step) for step in data["steps"])
            return cls(**{**data, "base": Specification(**data["base"]), "steps": steps})
        except (KeyError, TypeError) as error:
            raise SettingError(f"this is no trace of a scaling search: {error!r}") from error
