"""What keeps a model from learning its training images by heart: soft and mixed labels, stochastic depth.

Randomness comes from PyTorch's generator, which the trainer seeds before each step.
"""

from __future__ import annotations

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from anyvit.training.recipes import Recipe


class SoftTargets:
    """Makes soft targets of labels: some batches are mixed, all are smoothed, and classes get their weights.

    Args:
        recipe: How much of each.
        num_classes: K.
        class_weights: K factors of the loss, 1 on average over the training images; None: all the same.
    """

    def __init__(self, recipe: Recipe, num_classes: int, class_weights: np.ndarray | None = None) -> None:
        self.num_classes = num_classes
        self.smoothing = recipe.smoothing
        self.share = recipe.mixing
        self.weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.mixers: list[nn.Module] = []
        if recipe.mixup:
            self.mixers.append(v2.MixUp(alpha=recipe.mixup, num_classes=num_classes))
        if recipe.cutmix:
            self.mixers.append(v2.CutMix(alpha=recipe.cutmix, num_classes=num_classes))

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) to images and targets (B, K)."""
        if self.mixers and torch.rand(()).item() < self.share:
            mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
            images, targets = mixer(images, labels)
        else:
            targets = F.one_hot(labels, self.num_classes).float()
        targets = targets * (1 - self.smoothing) + self.smoothing / self.num_classes
        if self.weights is not None:
            # cross-entropy is linear in its targets: to weigh a class is to weigh its target
            targets = targets * self.weights.to(targets.device)
        return images, targets


def set_stochastic_depth(model: nn.Module, rate: float) -> None:
    """Let the blocks of a timm ViT be skipped in training, from never at the first to `rate` at the last."""
    blocks = [module for module in model.modules() if hasattr(module, "drop_path1") and hasattr(module, "drop_path2")]
    for depth, block in enumerate(blocks):
        for name in ("drop_path1", "drop_path2"):
            share = rate * depth / max(1, len(blocks) - 1)
            setattr(block, name, DropPath(share) if share else nn.Identity())
