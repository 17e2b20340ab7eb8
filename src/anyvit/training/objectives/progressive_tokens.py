"""Coarse tokens first, fine ones later: the early epochs of a training cost less (As-ViT, arXiv 2202.11921)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.asvit import TOKEN_FACTORS, AsViT

if TYPE_CHECKING:
    from anyvit.training.objectives import Objective


@dataclass(frozen=True)
class ProgressiveTokens:
    """Another objective, while an As-ViT's tokens are coarser than its own in the first epochs.

    The factor follows from the step alone, so a run that is resumed goes on where it was. No weight changes with it;
    wherever the model is not learning, its tokens are its own.

    Args:
        objective: What is learned.
        steps_per_epoch: Steps in an epoch.
        schedule: Each phase's first epoch and how many times wider and higher its tokens are: 1, 2 or 4. The first
            phase begins with epoch 0, the last one has the model's own tokens.

    Raises:
        SettingError: Another schedule.
    """

    name: ClassVar[str] = "progressive tokens"
    objective: Objective
    steps_per_epoch: int
    schedule: Sequence[tuple[int, int]]

    def __post_init__(self) -> None:
        epochs, factors = [epoch for epoch, _ in self.schedule], [factor for _, factor in self.schedule]
        rising = epochs[:1] == [0] and all(a < b for a, b in pairwise(epochs))
        if not rising or not {*factors} <= {*TOKEN_FACTORS} or factors[-1] != 1 or self.steps_per_epoch < 1:
            raise SettingError(
                "a schedule of tokens has rising first epochs from 0 on, of at least one step each, with factors 4, 2 "
                f"or 1, the last one 1: got {[*self.schedule]} and {self.steps_per_epoch} steps"
            )

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, *, step: int) -> tuple[Tensor, dict[str, float]]:
        if not isinstance(model, AsViT):
            raise ModelError(f"only an As-ViT's tokens can be coarser: this is a {type(model).__name__}")
        model.set_token_factor(self._factor(step))
        try:
            return self.objective.loss(model, images, targets, step=step)
        finally:
            model.set_token_factor(1)

    def _factor(self, step: int) -> int:
        epoch = step // self.steps_per_epoch
        return next(factor for first, factor in reversed(self.schedule) if first <= epoch)
