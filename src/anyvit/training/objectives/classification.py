"""One model, one label an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Classification:
    """Cross-entropy with the labels."""

    name: ClassVar[str] = "classification"

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, *, step: int) -> tuple[Tensor, dict[str, float]]:
        logits = model(images)
        return F.cross_entropy(logits, targets), {"accuracy": accuracy(logits, targets)}


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """The share of a batch that is right; of a soft target (B, K), its largest entry is."""
    labels = targets if targets.ndim == 1 else targets.argmax(1)
    return (logits.argmax(1) == labels).float().mean().item()
