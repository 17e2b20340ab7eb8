"""BatchNorm over a batch that several processes share: the statistics are those of the whole batch.

PyTorch's own, `SyncBatchNorm`, does not run on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from anyvit.errors import ModelError
from anyvit.scaling.spread.collectives import all_reduce_sum


class _Among:
    """Processes. A copy of a module is among the same."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group

    def __deepcopy__(self, memo: object) -> _Among:
        return self


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d of a batch that several processes share in equal parts. Its state is BatchNorm2d's."""

    among: _Among
    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        mean = self._over_all(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        var = self._over_all(centred.square().mean((0, 2, 3)))
        self._keep(mean.detach(), var.detach(), x.numel() // x.shape[1] * self.among.group.size())
        scale = torch.rsqrt(var + self.eps) * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    def _over_all(self, mean: Tensor) -> Tensor:
        return all_reduce_sum(mean, self.among.group) / self.among.group.size()

    @torch.no_grad()
    def _keep(self, mean: Tensor, var: Tensor, count: int) -> None:
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * count / (count - 1), self.momentum)


def share_batch_norms(model: nn.Module, group: ProcessGroup) -> None:
    """Let every BatchNorm2d in `model` take its statistics over all processes of `group`.

    Raises:
        ModelError: A BatchNorm of another kind learns, like that of a CNN which is not frozen.
    """
    among = _Among(group)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _shared(child, among))
            elif isinstance(child, _BatchNorm) and any(parameter.requires_grad for parameter in child.parameters()):
                raise ModelError(
                    f"{name}, a {type(child).__name__}, cannot see a batch that is shared: leave out data=…"
                )


def _shared(norm: nn.BatchNorm2d, among: _Among) -> SharedBatchNorm2d:
    with torch.device("meta"):
        shared = SharedBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    shared.load_state_dict(norm.state_dict(keep_vars=True), assign=True)
    shared.among = among
    return shared.train(norm.training)
