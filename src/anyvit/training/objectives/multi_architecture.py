"""Several architectures of a super-network at once, in one batch (ViT-ResNAS, arXiv 2109.00642)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.vit_resnas_super import ViTResNASSuper
from anyvit.training.objectives.classification import Classification

if TYPE_CHECKING:
    from anyvit.training.objectives import Objective


@dataclass(frozen=True)
class MultiArchitecture:
    """Another objective, for architectures drawn for each batch: at first the widest, then narrower ones too.

    While their number grows, each epoch begins by ordering heads and hidden units by importance, in place. All of it
    follows from the step alone, so a run that is resumed goes on where it was. What the optimizer remembers is not
    reordered, as in the reference. Weights that are averaged over steps would be averages of units in another order:
    train with `ema_decay` 0.

    Args:
        steps_per_epoch: Steps in an epoch.
        objective: What is learned. It must call the model with images alone.
        warmup_epochs: The first epoch with all widths; 30 of 120 in the paper.

    Raises:
        SettingError: An epoch without steps, or a negative number of epochs.
    """

    name: ClassVar[str] = "multi-architecture"
    steps_per_epoch: int
    objective: Objective = field(default_factory=Classification)
    warmup_epochs: int = 30

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1 or self.warmup_epochs < 0:
            raise SettingError(
                "an epoch has at least one step, and the widths grow over 0 epochs or more: got "
                f"{self.steps_per_epoch} steps and {self.warmup_epochs} epochs"
            )

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, *, step: int) -> tuple[Tensor, dict[str, float]]:
        if not isinstance(model, ViTResNASSuper):
            raise ModelError(
                f"several architectures at once need a super-network, and this is a {type(model).__name__}: "
                "see anyvit.models.vit_resnas_super"
            )
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if step_in_epoch == 0 and epoch <= self.warmup_epochs:
            model.rewire()
        model.set_epoch(epoch, warmup_epochs=self.warmup_epochs)
        return self.objective.loss(model, images, targets, step=step)
