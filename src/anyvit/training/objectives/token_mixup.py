"""A label for the image and one for each of its patches, images mixed by tokens (ViT-ResNAS, arXiv 2109.00642)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.nn import functional as F

from anyvit.errors import ModelError
from anyvit.training import token_mixup
from anyvit.training.objectives.classification import accuracy


@dataclass(frozen=True)
class TokenMixup:
    """Cross-entropy of the class token, and that of the patches, for a model with `patch_output`.

    It mixes the images itself: the recipe's `mixing` should be 0.
    """

    name: ClassVar[str] = "token mixup"

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, *, step: int) -> tuple[Tensor, dict[str, float]]:
        if not getattr(model, "patch_output", None):
            raise ModelError(f"token mixup needs a model with patch_output, not {type(model).__name__} without it")
        side = images.shape[-1] // cast(Any, model).feature_info[-1]["reduction"]
        draws = token_mixup.draw(len(images), side)
        images, targets, of_tokens = token_mixup.mix(images, targets, side, draws)
        logits, patches = model(images)
        if patches.ndim == 2:  # one answer for their mean
            of_patches = F.cross_entropy(patches, of_tokens.mean(1))
        else:
            of_patches = F.cross_entropy(patches.flatten(0, 1), of_tokens.flatten(0, 1))
        loss = F.cross_entropy(logits, targets) + of_patches
        return loss, {"accuracy": accuracy(logits, targets), "patches": of_patches.item()}
