"""What a run decides before it trains: the model, and what its candidates cost here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.data import resolve_model_data_config

from anyvit.costs.budget import Budget
from anyvit.data import DataSet
from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.designed import DESIGN, Design
from anyvit.deploy.promise import untrained_memory, whole_call
from anyvit.errors import BudgetError
from anyvit.jobs.offer import EAGER, Offer
from anyvit.models import create_model
from anyvit.protocols import Event, Progress
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.design.preset import choose_preset
from anyvit.scaling.form import Form
from anyvit.scaling.pricing import Conditions, price
from anyvit.scaling.search import out_of_reach, within
from anyvit.scaling.workshop import Workshop

if TYPE_CHECKING:
    from torch import nn

GLANCE = {"warmup_runs": 2, "warmup_s": 0.1, "runs": 5, "rounds": 2, "min_time_s": 0.05}
"""Timing good enough to tell presets apart and to say no."""

RANKING = {"warmup_s": 0.2, "runs": 10, "min_time_s": 0.2}
"""Timing that ranks candidates. The promise of the chosen one is measured with the whole protocol."""


COUNTED = ("params", "macs")
"""The costs that are the same on every runtime."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The model of a run, how its images are prepared, and its candidates with their costs, untrained."""

    form: Form
    why: str
    preprocessing: Preprocessing
    results: tuple[Result, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "form": self.form.to_json(),
            "why": self.why,
            "preprocessing": self.preprocessing.to_json(),
            "results": [result.to_json() for result in self.results],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        return cls(
            Form.from_json(data["form"]),
            data["why"],
            Preprocessing.from_json(data["preprocessing"]),
            tuple(Result.from_json(result) for result in data["results"]),
        )


@dataclass(frozen=True)
class Planner:
    """Chooses a model for images and a budget, and prices its candidates on this machine.

    Attributes:
        dataset: The images; their size and number of classes count.
        budget: What the candidates are held against.
        offer: The levers and runtimes to try.
        picture: An image file, where `latency_e2e` is bound.
        progress: Called with news.
    """

    dataset: DataSet
    budget: Budget
    offer: Offer
    picture: Path | None
    progress: Progress

    def plan(self, model: str | None, *, anyway: bool = False) -> Plan:
        """The plan for `model`, a name or a folder that `design` wrote, or for the preset that suits images and budget.

        Raises:
            BudgetError: A bound on a cost is out of reach, and `anyway` is off.
            ModelError: There is no such model, or a lever or backend cannot take it.
        """
        if model is not None:
            return self.plan_form(self.form(model), "as asked", anyway=anyway)
        choice = choose_preset(self.dataset.image_size, self.budget, self.glance)
        if choice.refusal and not anyway:
            raise BudgetError(choice.refusal)
        return self._plan(self.form(choice.preset.name), choice.why)

    def plan_form(self, form: Form, why: str, *, anyway: bool = False) -> Plan:
        """The plan for a model in its form. Raises as `plan` does."""
        ends = self._ends(form)
        if not anyway and not any(within(end, self.budget) for end in ends) and not self._may_do(ends):
            raise BudgetError(out_of_reach(ends, self.budget))
        return self._plan(form, why)

    def _may_do(self, ends: Sequence[Result]) -> bool:
        """Will a search decide, because a trained model only waits for it, and other runtimes may be fast enough?"""
        return self.offer.trained and bool(self._small_enough(ends)) and not self.offer.is_eager

    def _plan(self, form: Form, why: str) -> Plan:
        network = form.build().eval()
        levers = self.offer.levers_for(network)
        self.progress(Event("model", f"{form.name}: {why}" + ("" if levers else "; without levers")))
        if self.offer.levers and not self.offer.trained:  # a search will say so itself
            for name, reason in self.offer.skipped(network).items():
                self.progress(Event("model", f"{name} is left out: {reason}"))
        results = self._priced(network, list(self.offer.eager_space(network)), RANKING)
        if self._bound("memory"):
            conditions = self._conditions(network)
            results = [with_cost(r, "memory", untrained_memory(form, r.plain, conditions)) for r in results]
        return Plan(form, why, preprocessing_of(network), tuple(results))

    def glance(self, model: str) -> list[Result]:
        """The mildest and the strongest candidates of `model`, priced quickly and untrained."""
        return self._ends(self.form(model))

    def _ends(self, form: Form) -> list[Result]:
        """What nobody needs to build is looked at first; runtimes that are built, only where that does not do.

        A trained model is not kept from its search by what has to be built.
        """
        network = form.build().eval()
        ends = self.offer.space(network).ends()
        eager = [candidate for candidate in ends if candidate.backend.name == EAGER[0].name]
        results = self._with_memory(form, network, eager)
        for candidate in reversed([] if self.offer.trained and eager else ends):
            if any(within(result, self.budget) for result in results) or (results and not self._small_enough(results)):
                break
            if candidate not in eager:
                results += self._with_memory(form, network, [candidate])
        return results

    def _small_enough(self, results: Sequence[Result]) -> list[Result]:
        """Those that keep the bounds which no runtime changes."""
        counted = [bound for bound in self.budget.cost_bounds() if bound.cost in COUNTED]
        return [r for r in results if all(bound.met_by(r.costs[bound.cost]) for bound in counted)]

    def _with_memory(self, form: Form, network: nn.Module, wanted: Sequence[Candidate]) -> list[Result]:
        results = self._priced(network, wanted, GLANCE) if wanted else []
        if not results or not self._bound("memory"):
            return results
        least = untrained_memory(form, wanted[-1], self._conditions(network))  # one process, for time
        return [with_cost(result, "memory", least) for result in results]

    def form(self, model: str) -> Form:
        """`model` for the classes of the images, which have three channels, in the form that the levers train."""
        designed = Design.load(model).form if (Path(model) / DESIGN).is_file() else Form(model)
        return self.trainable(designed)

    def trainable(self, untrained: Form) -> Form:
        """The same of a form without levers."""
        arguments = {**untrained.arguments, "num_classes": len(self.dataset.classes)}
        with torch.device("meta"):
            network = create_model(untrained.name, **arguments)
        if resolve_model_data_config(network)["input_size"][0] != 3:
            arguments["in_chans"] = 3
        levers = () if self.offer.trained else self.offer.levers_for(network)
        return Form(untrained.name, arguments, tuple(Step(lever.name) for lever in levers))

    def _conditions(self, network: nn.Module) -> Conditions:
        return Conditions(preprocessing_of(network).image_size, threads=self.offer.threads)

    def _bound(self, cost: str) -> bool:
        return any(bound.cost == cost for bound in self.budget.bounds)

    def _priced(self, network: nn.Module, wanted: Sequence[Candidate], protocol: Mapping[str, float]) -> list[Result]:
        """All costs but memory, which takes a process for each candidate."""
        picture, preprocessing, conditions = self.picture, preprocessing_of(network), self._conditions(network)
        return price(
            Workshop(network, conditions.example(), conditions.example(8)),  # any images will do to tell times
            wanted,
            conditions,
            throughput=self._bound("throughput"),
            end_to_end=(lambda runner: whole_call(runner, preprocessing, picture)) if picture else None,
            progress=self.progress,
            **protocol,
        )


def sample_picture(dataset: DataSet, budget: Budget, folder: Path) -> Path | None:
    """A test image as a file in `folder`, a JPEG where it was one; `latency_e2e` is measured on it, where bound."""
    if not any(bound.cost == "latency_e2e" for bound in budget.bounds):
        return None
    images = dataset.splits["test"].images
    suffix = Path(images.name(0)).suffix.lower()
    file = folder / f"picture{suffix if suffix in ('.jpg', '.jpeg') else '.png'}"
    images.load(0).save(file)
    return file


def with_cost(result: Result, cost: str, value: float) -> Result:
    """`result` with one cost more, or anew."""
    return replace(result, costs={**result.costs, cost: value})


def preprocessing_of(network: nn.Module) -> Preprocessing:
    """How the images of a timm model are prepared, by its `pretrained_cfg`."""
    config = resolve_model_data_config(network)
    return Preprocessing(
        image_size=config["input_size"][-1],
        crop_ratio=config["crop_pct"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
