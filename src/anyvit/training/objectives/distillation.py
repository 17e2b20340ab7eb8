"""A smaller model learns from the labels and from the soft answers of the one it was made of (arXiv 1503.02531).

Differs: `timm.task.LogitDistillationTask` has the same loss, and a test holds ours to it, but it is a module that takes
         in the student and the teacher: the teacher's weights would lie in every checkpoint and move with every `.to`,
         its mode would change, and the student would have to carry timm's `pretrained_cfg`, which a pruned one may lack
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from anyvit.errors import SettingError
from anyvit.training.objectives.classification import accuracy
from anyvit.training.objectives.teacher import Teacher


@dataclass(frozen=True)
class Distillation:
    """Cross-entropy with the labels, and the distance to a teacher's answers on the very same images, mixed or not.

    Args:
        teacher: Answers in evaluation mode. It is left as it is, and learns nothing.
        hard: The share of the labels in the loss, in [0, 1]; the teacher has the rest.
        temperature: What both models' logits are divided by before they are compared, above 0. The squared factor
            keeps the gradient's size.

    Raises:
        SettingError: A share or a temperature outside its range.
    """

    name: ClassVar[str] = "distillation"
    teacher: nn.Module = field(repr=False)
    hard: float = 0.5
    temperature: float = 2.0
    weights: str = field(init=False)  # of the teacher, so that a run is not resumed with another
    _answers: Teacher = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.hard <= 1:
            raise SettingError(f"hard, the share of the labels in the loss, must be from 0 to 1: got {self.hard}.")
        if not self.temperature > 0:
            raise SettingError(f"temperature must be above 0: got {self.temperature}.")
        object.__setattr__(self, "_answers", Teacher(self.teacher))
        object.__setattr__(self, "weights", self._answers.weights)

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, *, step: int) -> tuple[Tensor, dict[str, float]]:
        logits = model(images)
        learned = F.log_softmax(logits / self.temperature, dim=1)
        taught = F.log_softmax(self._answers(images) / self.temperature, dim=1)
        soft = F.kl_div(learned, taught, reduction="batchmean", log_target=True) * self.temperature**2
        loss = self.hard * F.cross_entropy(logits, targets) + (1 - self.hard) * soft
        return loss, {"accuracy": accuracy(logits, targets), "distance": soft.item()}
