"""MLPs that become smaller after training, with the same answers (RePaViT, arXiv 2505.21847, section 3).

In training only the first hidden units are activated, and the norms are BatchNorms: what the other, idle units compute
is then linear, and merges into one C x C matrix. The residual connection stays where timm's blocks have it, outside:
the block is timm's before and after, and the merged matrix holds no identity, which rounds and quantizes better.

Letters: B images, N tokens, C channels, H hidden units, A active ones (the first A of H).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.metaformer import MetaFormerBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anyvit.errors import ModelError, SettingError
from anyvit.models.contract import Model, share

NORMS = ("batch", "layer")
BLOCKS = (Block, SwinTransformerBlock, MetaFormerBlock)
_EPS = 1e-5


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the last axis of tokens (B, N, C): statistics are those of all tokens of all images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


class ChannelIdleMlp(nn.Module):
    """An MLP with the norm before it, whose hidden units beyond the first `active` are not activated.

    Args:
        mlp: timm's, on tokens or, with convolutions of 1 x 1, on maps. Its layers are taken over.
        active: A.
        norm: "batch", which can merge: one norm before each matrix; or "layer", which cannot: one before the first.
        scale: The layer scale of the output, or the identity.
    """

    def __init__(self, mlp: Mlp, active: int, *, norm: str = "batch", scale: nn.Module) -> None:
        super().__init__()
        channels, hidden = mlp.fc1.weight.shape[1], mlp.fc1.weight.shape[0]
        self.active = active
        self.hidden = hidden
        self.dim = 1 if isinstance(mlp.fc1, nn.Conv2d) else -1
        self.norm1 = _norm(norm, channels, like=mlp.fc1)
        self.fc1 = mlp.fc1
        self.act = mlp.act
        self.drop1 = mlp.drop1
        self.norm2 = _norm("batch", hidden, like=mlp.fc1) if norm == "batch" else nn.Identity()
        self.fc2 = mlp.fc2
        self.drop2 = mlp.drop2
        self.ls = scale
        self.train(mlp.training)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(self.norm1(x))
        active = self.act(x.narrow(self.dim, 0, self.active))
        idle = x.narrow(self.dim, self.active, self.hidden - self.active)
        x = self.drop1(torch.cat((active, idle), self.dim))
        return self.ls(self.drop2(self.fc2(self.norm2(x))))

    def fuse(self) -> MergedMlp:
        """The same function in evaluation mode, as three smaller matrices. `timm.utils.reparameterize_model` calls it.

        Raises:
            ModelError: It is in training mode, or has a LayerNorm.
        """
        if reason := self.why_not_fuse():
            raise ModelError(f"this MLP cannot be merged: {reason}")
        first, first_bias = _folded(self.norm1, self.fc1)
        second, second_bias = _folded(self.norm2, self.fc2)
        for scale in self.ls.parameters():
            second, second_bias = scale.detach().double()[:, None] * second, scale.detach().double() * second_bias
        active, idle = slice(self.active), slice(self.active, None)
        linear = second[:, idle] @ first[idle]
        bias = second[:, idle] @ first_bias[idle] + second_bias
        return MergedMlp(
            _layer(self.fc1, linear, bias),
            _layer(self.fc1, first[active], first_bias[active]) if self.active else None,
            self.act,
            _layer(self.fc2, second[:, active]) if self.active else None,
        ).eval()

    def why_not_fuse(self) -> str | None:
        """The reason why it cannot be merged, or None."""
        if not self.mergeable:
            return f"a {type(self.norm1).__name__} depends on each token; only BatchNorm becomes part of a matrix"
        if self.training:
            return "it is in training mode, in which BatchNorm depends on the batch: call eval() first"
        return None

    @property
    def mergeable(self) -> bool:
        """Whether its norms are BatchNorms, which a trained model can merge."""
        return isinstance(self.norm1, _BatchNorm)

    @property
    def saves(self) -> bool:
        """Whether the merged form is smaller: C + 2 A is below 2 H."""
        return self.fc1.weight.shape[1] + 2 * self.active < 2 * self.hidden


class MergedMlp(nn.Module):
    """`linear(x) + fc2(act(fc1(x)))`: what a trained `ChannelIdleMlp` comes down to, norms and all.

    Args:
        linear: What the idle units do, C to C.
        fc1: To the active units, C to A; None where there are none.
        act: Of timm's MLP.
        fc2: From the active units, A to C, without a bias.
    """

    def __init__(self, linear: nn.Module, fc1: nn.Module | None, act: nn.Module, fc2: nn.Module | None) -> None:
        super().__init__()
        self.linear = linear
        self.fc1 = fc1
        self.act = act
        self.fc2 = fc2

    def forward(self, x: Tensor) -> Tensor:
        linear = self.linear(x)
        return linear if self.fc1 is None or self.fc2 is None else linear + self.fc2(self.act(self.fc1(x)))

    def train(self, mode: bool = True) -> MergedMlp:
        if mode and not self.training:
            warnings.warn(
                "a merged MLP has lost the BatchNorms that it was trained with: train the form it came from",
                stacklevel=2,
            )
        return super().train(mode)


def active_units(hidden: int, idle_ratio: float, *, rounded: Callable[[float], int] = math.ceil) -> int:
    """A, counted in floating point as the reference does: ceil(120 * (1 - 0.7)) is 37, and its weights say so.

    Raises:
        SettingError: `idle_ratio` is not in [0, 1].
    """
    if isinstance(idle_ratio, bool) or not isinstance(idle_ratio, int | float) or not 0 <= idle_ratio <= 1:
        raise SettingError(f"an idle ratio must be a number from 0 to 1: got {idle_ratio!r}")
    return rounded(hidden * (1 - idle_ratio))


def blocks_with_mlp(model: nn.Module) -> list[tuple[str, Any]]:
    """The blocks of timm's ViT, Swin and PoolFormer (MetaFormer) in `model`, with their paths."""
    return [(path, module) for path, module in model.named_modules() if type(module) in BLOCKS]


def idle_mlps(model: nn.Module) -> list[ChannelIdleMlp]:
    """The MLPs of `model` that have the trainable form."""
    return [block.mlp for _, block in blocks_with_mlp(model) if isinstance(block.mlp, ChannelIdleMlp)]


def why_not_idle(model: nn.Module) -> str | None:
    """The reason why `model` has no channel-idle form, or None."""
    blocks = blocks_with_mlp(model)
    if not blocks:
        return f"a {type(model).__name__} has no blocks with an MLP as timm's ViT, Swin and PoolFormer have"
    for path, block in blocks:
        if isinstance(block.mlp, MergedMlp):
            return f"{path}.mlp is merged already"
        if type(block.mlp) is Mlp and not isinstance(block.mlp.norm, nn.Identity):
            return f"{path}.mlp has a {type(block.mlp.norm).__name__} between its matrices"
        if type(block.mlp) not in (Mlp, ChannelIdleMlp):
            return f"{path}.mlp is a {type(block.mlp).__name__}, not two linear layers"
    return None


def make_idle(model: nn.Module, active: Sequence[int], *, norm: str = "batch") -> None:
    """Give `model`, in place, MLPs with so many active units, block by block.

    Norm and layer scale of the MLP go into it. The BatchNorm before it starts with the norm's weight and bias.

    Raises:
        SettingError: An unknown norm.
    """
    if norm not in NORMS:
        raise SettingError(f"feature_norm must be one of {', '.join(NORMS)}: got {norm!r}")
    for (_, block), units in zip(blocks_with_mlp(model), active, strict=True):
        name = "layer_scale2" if isinstance(block, MetaFormerBlock) else "ls2"
        mlp = ChannelIdleMlp(block.mlp, units, norm=norm, scale=getattr(block, name, nn.Identity()))
        with torch.no_grad():
            for leaf, tensor in block.norm2.named_parameters():
                mlp.norm1.get_parameter(leaf).copy_(tensor)
        block.mlp, block.norm2 = mlp, nn.Identity()
        if hasattr(block, name):
            setattr(block, name, nn.Identity())


def channel_idle(model: Model, idle_ratio: float) -> Model:
    """A copy of `model` with channel-idle MLPs: the form to train. It does not answer as `model` does.

    Args:
        model: timm's ViT, Swin or MetaFormer (PoolFormer). It is left as it is.
        idle_ratio: The share of hidden units that are not activated. 0.75 makes MLPs of the usual width 62.5 % smaller.

    Raises:
        ModelError: It has no such form, or has it already.
        SettingError: `idle_ratio` is not in [0, 1].
    """
    reason = "it has this form already" if idle_mlps(model) else why_not_idle(model)
    if hasattr(model, "elastic_heads"):
        reason = "BatchNorm keeps the statistics of one width, and it has many: extract a subnetwork first"
    if reason:
        raise ModelError(f"{type(model).__name__} cannot be made channel-idle: {reason}")
    twin = copy.deepcopy(model)
    hidden = [block.mlp.fc1.weight.shape[0] for _, block in blocks_with_mlp(twin)]
    make_idle(twin, [active_units(units, idle_ratio) for units in hidden])
    return twin


def merged(model: Model) -> Model:
    """`model` with its channel-idle MLPs merged, which answers the same; all other tensors are shared with it.

    An MLP with too few idle units to get smaller stays as it is.

    Raises:
        ModelError: There is nothing to merge, a LayerNorm, or training mode.
    """
    if why := _why_not_merge(model):
        raise ModelError(f"{type(model).__name__} cannot be merged: {why}")
    smaller = share(model)
    for _, block in blocks_with_mlp(smaller):
        if isinstance(block.mlp, ChannelIdleMlp) and block.mlp.saves:
            block.mlp = block.mlp.fuse()
    return smaller


def _why_not_merge(model: nn.Module) -> str | None:
    if any(isinstance(module, MergedMlp) for module in model.modules()):
        return "it is merged already"
    idle = idle_mlps(model)
    if not idle:
        return "its MLPs are not channel-idle: make them so, and train the model, first"
    return next((reason for mlp in idle if (reason := mlp.why_not_fuse())), None)


def idle_share(model: nn.Module) -> float:
    """The share of all hidden units that are idle, to four digits."""
    idle = idle_mlps(model)
    hidden = sum(mlp.hidden for mlp in idle)
    return round(1 - sum(mlp.active for mlp in idle) / hidden, 4) if hidden else 0.0


def _norm(kind: str, channels: int, like: nn.Linear | nn.Conv2d) -> nn.Module:
    where: dict[str, Any] = {"device": like.weight.device, "dtype": like.weight.dtype}
    if kind == "layer":
        return nn.LayerNorm(channels, eps=_EPS, **where)
    batch = nn.BatchNorm2d if isinstance(like, nn.Conv2d) else TokenBatchNorm
    return batch(channels, eps=_EPS, **where)


def _folded(norm: Any, linear: Any) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias of `linear(norm(x))` in evaluation mode, in float64: only one rounding is left."""
    tensors = (linear.weight.flatten(1), norm.weight, norm.bias, norm.running_mean, norm.running_var)
    weight, gamma, beta, mean, variance = (tensor.detach().double() for tensor in tensors)
    scale = gamma / torch.sqrt(variance + norm.eps)
    bias = weight @ (beta - mean * scale)
    return weight * scale, bias if linear.bias is None else bias + linear.bias.detach().double()


def _layer(like: Any, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """A layer of the kind and type of `like` with this weight (out, in) and bias."""
    rows, columns = weight.shape
    layer: Any
    if isinstance(like, nn.Conv2d):
        layer, weight = nn.Conv2d(columns, rows, 1, bias=bias is not None, device="meta"), weight[:, :, None, None]
    else:
        layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.to(like.weight.dtype).contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(like.weight.dtype))
    return layer
