"""Tokens go little by little while a model learns to do without them (EViT, arXiv 2202.07800, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.contract import blocks_of
from anyvit.models.layers.evit import EViT, keep_rate_at
from anyvit.models.layers.token_reduction import ReducedViT

if TYPE_CHECKING:
    from anyvit.training.objectives import Objective


@dataclass(frozen=True)
class KeepRateWarmUp:
    """Another objective, while the keep rates of EViT's blocks fall from 1 to their own by half a cosine.

    The rate follows from the step alone, so a run that is resumed goes on where it was. For training from the start;
    fine-tuning begins at the model's own rates, as the paper's does.

    Args:
        objective: What is learned. It must call the model with images alone.
        steps_per_epoch: Steps in an epoch.
        start: The epoch in which the rates begin to fall; 10 in the paper, of 300.
        end: The first epoch with the model's own; 110 in the paper.

    Raises:
        SettingError: The rates would have to fall before they begin to.
    """

    name: ClassVar[str] = "keep-rate warm-up"
    objective: Objective
    steps_per_epoch: int
    start: int = 10
    end: int = 110

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1 or not 0 <= self.start <= self.end:
            raise SettingError(
                "keep rates fall from epoch start to epoch end, 0 <= start <= end, of at least one step each: got "
                f"{self.start}, {self.end} and {self.steps_per_epoch} steps."
            )

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, *, step: int) -> tuple[Tensor, dict[str, float]]:
        reducing = partial(model, keep_rate=[self._rate(own, step) for own in _keep_rates(model)])
        return self.objective.loss(reducing, images, targets, step=step)  # type: ignore[arg-type]  # it is only called

    def _rate(self, own: float, step: int) -> float:
        return keep_rate_at(step, base=own, steps_per_epoch=self.steps_per_epoch, start=self.start, end=self.end)


def _keep_rates(model: nn.Module) -> list[float]:
    """The keep rate of each block."""
    reducers = [block.reducer for block in blocks_of(model)] if isinstance(model, ReducedViT) else []
    if not reducers or not all(isinstance(reducer, EViT) for reducer in reducers):
        raise ModelError(
            f"keep rates are EViT's, and this {type(model).__name__} has none: see anyvit.models.layers.evit"
        )
    return [reducer.keep_rate for reducer in reducers]
