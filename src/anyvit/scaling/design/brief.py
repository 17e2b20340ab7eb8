"""What a method of design is asked, and what it may use to answer: costs here, images, a folder, the time it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyvit.costs.budget import Bound, Budget
from anyvit.costs.counts import Specification, vit_macs, vit_params
from anyvit.costs.predictor import Predictor, PredictorError
from anyvit.costs.timing import Latency
from anyvit.data import DataSet
from anyvit.errors import SettingError
from anyvit.protocols import Event, Progress, silent
from anyvit.scaling.candidate import Candidate
from anyvit.scaling.design.finding import Designed
from anyvit.scaling.design.shape import form_of, name_of
from anyvit.scaling.design.timing import ShapeTimer
from anyvit.scaling.form import Form
from anyvit.scaling.pricing import Conditions, count, price
from anyvit.scaling.search import margin_of
from anyvit.scaling.workshop import Workshop

BOUNDED = ("latency", "macs", "params", "size", "memory")
"""The costs that a design can be held to."""


@dataclass
class Brief:
    """A budget, and the means to design for it.

    Attributes:
        budget: Bounds on costs in `BOUNDED`.
        image_size: Pixels a side.
        num_classes: Classes.
        timer: Measures plain ViTs, and remembers; on the runtime, batch and threads that the latency is of.
        memory: The peak rise in bytes of building a model and answering, in a new process.
        folder: For trainings, which a resumed run goes on with.
        recall: The JSON value that an earlier process kept under a name, or None.
        keep: Keeps one.
        dataset: Labelled images, where there are any.
        epochs: Of the trainings that a method makes; None: its own default.
        deadline: On the monotonic clock; a search then ends with what it has.
        seed: Everything random follows from it.
        progress: Called with news.

    Raises:
        SettingError: A bound on what a design cannot know, or none at all.
    """

    budget: Budget
    image_size: int
    num_classes: int
    timer: ShapeTimer
    memory: Callable[[Form], float]
    folder: Path
    recall: Callable[[str], Any]
    keep: Callable[[str, Any], None]
    dataset: DataSet | None = None
    epochs: float | None = None
    deadline: float | None = None
    seed: int = 0
    progress: Progress = silent
    predictor: Predictor | None = field(default=None, init=False)
    predictor_error: PredictorError | None = field(default=None, init=False)
    _offset: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        unknown = [str(bound) for bound in self.budget.bounds if bound.cost not in BOUNDED]
        if unknown:
            raise SettingError(f"a design is held to {', '.join(BOUNDED)}; leave out {', '.join(unknown)}.")
        if not self.budget.bounds:
            raise SettingError("a design needs a budget, like latency<=50ms or params<=5M.")

    @property
    def binding(self) -> Bound:
        """The bound that a report tells costs by: on latency, where there is one."""
        return min(self.budget.bounds, key=lambda bound: BOUNDED.index(bound.cost))

    @property
    def candidate(self) -> Candidate:
        """A model as it is, on the runtime."""
        return self.timer.candidate

    @property
    def conditions(self) -> Conditions:
        return Conditions(self.image_size, self.timer.batch, self.timer.threads)

    @property
    def is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def bounds(self, cost: str) -> bool:
        """Whether the budget bounds it."""
        return any(bound.cost == cost for bound in self.budget.bounds)

    def load(self, costs: Mapping[str, float]) -> float:
        """The largest share of its bound that a cost takes, timed ones with the margin of a promise: inside up to 1."""
        return max(costs[bound.cost] * margin_of(bound.cost) / bound.value for bound in self.budget.bounds)

    def predicted(self, spec: Specification) -> dict[str, float]:
        """The costs of a plain ViT: latency by the predictor, or measured where none can be trusted."""
        params = vit_params(spec)
        costs: dict[str, float] = {"params": params, "macs": vit_macs(spec), "size": 4 * params}
        if self.bounds("latency"):
            costs["latency"] = self.predictor(spec) if self.predictor else self.timer.latency(spec).seconds
        if self.bounds("memory"):
            costs["memory"] = self._memory(spec)
        return costs

    def expected_load(self, spec: Specification) -> float:
        """The load of a plain ViT by what is predicted of it."""
        return self.load(self.predicted(spec))

    def measured(self, specs: Sequence[Specification]) -> list[Designed]:
        """Plain ViTs with their costs, the latency measured here where the budget bounds it."""
        timed = {spec: {"latency": found.seconds} for spec, found in self._timed(specs).items()}
        memory = {spec: {"memory": self.memory(form_of(spec))} for spec in specs if self.bounds("memory")}
        return [
            self.designed(
                name_of(spec), form_of(spec), self.predicted(spec) | timed.get(spec, {}) | memory.get(spec, {})
            )
            for spec in specs
        ]

    def _timed(self, specs: Sequence[Specification]) -> Mapping[Specification, Latency]:
        return self.timer.latencies(specs) if self.bounds("latency") else {}

    def measured_form(self, name: str, form: Form) -> Designed:
        """Any model with its costs, measured here."""
        conditions, wanted = self.conditions, [self.candidate]
        workshop = Workshop(form.build().eval(), conditions.example(), conditions.example())
        costs = count(workshop, wanted, self.image_size)[self.candidate.id]
        if self.bounds("latency"):
            (result,) = price(workshop, wanted, conditions, progress=self.progress, **self.timer.protocol)
            costs = {**costs, "latency": result.costs["latency"]}
        if self.bounds("memory"):
            costs["memory"] = self.memory(form)
        return self.designed(name, form, costs)

    def designed(self, name: str, form: Form, costs: Mapping[str, float], **others: Any) -> Designed:
        """A model with measured costs, held against the budget."""
        return Designed(name, form, costs, measured="latency" in costs, fits=self.load(costs) <= 1, **others)

    def tell(self, message: str, done: float | None = None) -> None:
        self.progress(Event("design", message, done))

    def _memory(self, spec: Specification) -> float:
        """Weights and the widest activations of a block, beside what every model takes: that is measured once."""
        if self._offset is None:
            small = Specification(self.image_size, spec.patch_size, 1, 1, 16, num_classes=self.num_classes)
            self._offset = self.memory(form_of(small)) - self._held(small)
        return self._offset + self._held(spec)

    def _held(self, spec: Specification) -> float:
        tokens, width = spec.num_patches + 1, spec.embed_dim
        widest = max(4 * width, width + spec.hidden_dim, 3 * width + spec.heads * tokens)
        return 4.0 * (vit_params(spec) + self.timer.batch * tokens * widest)
