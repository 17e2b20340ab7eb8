"""What a model learns from a batch. A new objective is a new file and one line in `OBJECTIVES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from anyvit.training.objectives.classification import Classification
from anyvit.training.objectives.complexity_aware import ComplexityAware
from anyvit.training.objectives.distillation import Distillation
from anyvit.training.objectives.elastic import ElasticClassification
from anyvit.training.objectives.keep_rate import KeepRateWarmUp
from anyvit.training.objectives.multi_architecture import MultiArchitecture
from anyvit.training.objectives.progressive_tokens import ProgressiveTokens
from anyvit.training.objectives.token_mixup import TokenMixup


class Objective(Protocol):
    """A loss and what it takes to compute it. Its `repr` tells it from others: a resumed run must use the same."""

    name: ClassVar[str]

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, *, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and figures to show.

        Args:
            model: In training mode.
            images: The preprocessed batch (B, C, H, W).
            targets: Soft labels (B, K); class weights and label smoothing are already in them.
            step: Steps done before this one. Whatever is random here is a function of it, or drawn from PyTorch's
                generator, which is seeded anew before each step.
        """


@runtime_checkable
class Remembering(Protocol):
    """An objective that its steps change: what they leave in it lies in the checkpoints, as plain data."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


OBJECTIVES: Mapping[str, type[Objective]] = {
    Classification.name: Classification,
    ComplexityAware.name: ComplexityAware,
    ElasticClassification.name: ElasticClassification,
    Distillation.name: Distillation,
    KeepRateWarmUp.name: KeepRateWarmUp,
    MultiArchitecture.name: MultiArchitecture,
    ProgressiveTokens.name: ProgressiveTokens,
    TokenMixup.name: TokenMixup,
}


def objective_for(model: nn.Module, *, seed: int) -> Objective:
    """The objective that suits `model`: for an elastic one that of all its subnetworks."""
    return ElasticClassification(seed=seed) if hasattr(model, "elastic_heads") else Classification()
