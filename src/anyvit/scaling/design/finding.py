"""What a design has found: models with what they cost here and what they are held to be worth, best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anyvit.scaling.form import Form


@dataclass(frozen=True, slots=True)
class Designed:
    """A model that was looked at.

    Attributes:
        name: Short, and unlike the others'.
        form: What builds it.
        costs: By the names of the budget language, in base units.
        worth: By the method's own measure, higher is better; None where it was not judged.
        spread: Its standard error.
        measured: The latency was measured, not predicted.
        fits: All bounds are kept, timed ones with room to spare.
    """

    name: str
    form: Form
    costs: Mapping[str, float]
    worth: float | None = None
    spread: float = 0.0
    measured: bool = False
    fits: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "form": self.form.to_json(),
            "costs": dict(self.costs),
            "worth": self.worth,
            "spread": self.spread,
            "measured": self.measured,
            "fits": self.fits,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Designed:
        return cls(**{**data, "form": Form.from_json(data["form"])})


@dataclass(frozen=True, slots=True)
class Surface:
    """What plain ViTs would cost by depth and width, all else as in the chosen one: predicted."""

    cost: str
    depths: Sequence[int]
    widths: Sequence[int]
    values: Sequence[Sequence[float]]  # a row a depth, in base units

    def to_json(self) -> dict[str, Any]:
        return {
            "cost": self.cost,
            "depths": list(self.depths),
            "widths": list(self.widths),
            "values": [list(row) for row in self.values],
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of a method.

    Attributes:
        measure: What `worth` is, in words: "training-free score", "accuracy after 3 epochs".
        ranking: The best first; the first one is the answer.
        relatives: Models that everybody knows, as they would do under the same budget.
        path: The steps that led there, a row each: whatever the method calls them.
        surface: What shapes around the answer would cost.
        notes: What a user should know, a sentence each.
        weights: Of the answer, where it is trained already.
    """

    measure: str
    ranking: Sequence[Designed]
    relatives: Sequence[Designed] = ()
    path: Sequence[Mapping[str, Any]] = ()
    surface: Surface | None = None
    notes: Sequence[str] = ()
    weights: Mapping[str, Tensor] | None = None

    @property
    def chosen(self) -> Designed:
        return self.ranking[0]
