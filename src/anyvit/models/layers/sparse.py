"""A linear layer that was pruned: its zeros stay zeros when it is trained. Otherwise it is an ordinary one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SparseLinear(nn.Linear):
    """A linear layer whose weights that are zero get no gradient.

    So no optimizer that treats weights one by one moves them (AdamW, SGD, Lion: no gradient, no momentum, and decay of
    zero is zero), nor does an average over the steps; one that mixes the weights of a matrix, like Muon, would. Masks
    of their own would make the model a quarter larger, and its state dict no longer timm's.
    """

    def forward(self, x: Tensor) -> Tensor:
        exporting = (
            torch.jit.is_tracing() or torch.compiler.is_exporting()
        )  # there gradients may be on, and are not meant
        learning = torch.is_grad_enabled() and not exporting
        return F.linear(x, self.weight * (self.weight != 0) if learning else self.weight, self.bias)
