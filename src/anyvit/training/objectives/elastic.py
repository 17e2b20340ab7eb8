"""One set of weights, a usable network for every number of heads (HydraViT, arXiv 2409.17978).

The uniform and the weighted choice are the paper's. The sandwich is our addition after Yu and Huang 2019
(arXiv 1903.05134): at each step the largest subnetwork learns from the labels and teaches the smallest and one other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from torch import Tensor, distributed, nn
from torch.nn import functional as F

from anyvit.errors import ModelError, SettingError, unknown
from anyvit.training.objectives.classification import accuracy
from anyvit.training.objectives.sampler import HeadSampler

CHOICES = ("uniform", "weighted", "sandwich")


@dataclass(frozen=True)
class ElasticClassification:
    """Cross-entropy with the labels, for a model with `elastic_heads`.

    Args:
        choice: "uniform" and "weighted" draw one number of heads a step; "sandwich" trains the largest subnetwork on
            the labels, and the smallest and a random one in between on the soft answer of the largest. The default
            is the best of them at equal time (benchmarks/objectives.py).
        weights: How often each of the model's `elastic_heads` is drawn, for "weighted"; None is in proportion to their
            number, so that the larger subnetworks, whose steps train the smaller ones too, come more often.
        seed: The draws are a function of it and the step.
        sync_across_ranks: Whether all processes of a distributed run draw the same. The paper's do not.

    Raises:
        SettingError: An unknown choice, or weights without "weighted".
    """

    name: ClassVar[str] = "elastic classification"
    choice: str = "weighted"
    weights: tuple[float, ...] | None = None
    seed: int = 0
    sync_across_ranks: bool = False

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise SettingError(unknown("choice of subnetworks", self.choice, CHOICES))
        if self.weights is not None and self.choice != "weighted":
            raise SettingError(f"weights go with choice 'weighted' alone, not {self.weights} with {self.choice!r}.")

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, *, step: int) -> tuple[Tensor, dict[str, float]]:
        heads = _elastic_heads(model)
        if self.choice == "sandwich":
            return self._sandwich(model, heads, images, targets, step)
        logits = model(images, heads=self._draw(heads, step))
        return F.cross_entropy(logits, targets), {"accuracy": accuracy(logits, targets)}

    def _sandwich(
        self, model: nn.Module, heads: Sequence[int], images: Tensor, targets: Tensor, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        smallest, *between, largest = heads if len(heads) > 1 else (None, heads[0])
        logits = model(images, heads=largest)
        answer = logits.detach().float().softmax(1)
        pupils = [smallest] if smallest else []
        pupils += [self._draw(between, step)] if between else []
        loss = F.cross_entropy(logits, targets)
        for pupil in pupils:
            loss = loss + F.cross_entropy(model(images, heads=pupil), answer)
        return loss, {"accuracy": accuracy(logits, targets)}

    def _draw(self, heads: Sequence[int], step: int) -> int:
        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
        seed = self.seed if self.sync_across_ranks else self.seed + rank
        weights = tuple(heads) if self.choice == "weighted" and self.weights is None else self.weights
        return _sampler(tuple(heads), weights, seed).draw(step)


def _elastic_heads(model: nn.Module) -> Sequence[int]:
    heads = getattr(model, "elastic_heads", None)
    if not heads:
        raise ModelError(f"elastic training needs an elastic model, not {type(model).__name__}: see anyvit.elastic.")
    return heads


@cache
def _sampler(heads: tuple[int, ...], weights: tuple[float, ...] | None, seed: int) -> HeadSampler:
    return HeadSampler(heads, weights, seed)
