"""BatchNorm's statistics taken anew: those that training leaves are of other weights than the averaged ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give the BatchNorms of `model`, in place, the means and variances of `batches`, each counting alike.

    Everything else answers as in evaluation, and frozen norms keep what they have. (PyTorch's own, `update_bn`, puts
    the whole model into training mode, dropout included, and resets frozen norms.) Without any, no batch is taken.

    Args:
        model: It is in evaluation mode afterwards.
        batches: Images (B, C, H, W), in a random order: a batch of one class has less variance than all images.
    """
    norms = [
        module
        for module in model.eval().modules()
        if isinstance(module, _BatchNorm) and any(parameter.requires_grad for parameter in module.parameters())
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().reset_running_stats()
        norm.momentum = None  # the plain mean of the batches
    for images in batches:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
