"""The form of a model: what rebuilds it, without its weights, in the shape it was trained in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anyvit.models import create_model
from anyvit.scaling.candidate import Step
from anyvit.scaling.shrink import lever_named

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Form:
    """A registered model's name, its constructor arguments, and the levers that it is trained for."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    levers: tuple[Step, ...] = ()

    def build(self, **more: Any) -> nn.Module:
        """The model with fresh weights, in its trainable form. `more` is passed to `create_model`."""
        model = create_model(self.name, **self.arguments, **more)
        for step in self.levers:
            model = lever_named(step.name).before_training(model, step.setting)
        return model

    def to_json(self) -> dict[str, Any]:
        levers = [{"name": step.name, "setting": dict(step.setting)} for step in self.levers]
        return {"name": self.name, "arguments": dict(self.arguments), "levers": levers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Form:
        return cls(data["name"], data["arguments"], tuple(Step(**step) for step in data["levers"]))
