"""ElasticViT: convolution stages, then attention stages with wide values; thousands of them live in one super-network.

Paper:    Tang, Zhang, Cui, et al., ICCV 2023, arXiv 2303.09730
Weights:  microsoft/Moonlit's super-network, mapped by `elasticvit_layout`; see `anyvit.models.elasticvit_super`
Differs:  this is the network of one architecture, without anything elastic: a position table has no more entries and
          a block no more shortcuts than it needs
Letters:  B images, C channels, N tokens, h heads, d head_dim, e = v_scale * d channels of a value, R side of a grid
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anyvit.errors import ModelError, SettingError
from anyvit.models.elasticvit_macs import REDUCTION_KERNEL, REDUCTION_RATIO, macs
from anyvit.models.elasticvit_space import NAMED, PUBLISHED, Arch, Space, Stage


class ConvBlock(nn.Module):
    """An inverted bottleneck with a residual connection that fits any change of shape.

    Args:
        widths: Channels in, hidden and out.
        kernel: Of the depthwise convolution.
        stride: 1 or 2.
        expand: Whether a convolution leads to the hidden channels.
        squeeze: Whether they are weighed by squeeze-and-excite.
        shortcut: Whether the residual connection changes its channels.
    """

    def __init__(
        self, widths: tuple[int, int, int], kernel: int, stride: int, *, expand: bool, squeeze: bool, shortcut: bool
    ) -> None:
        super().__init__()
        inputs, hidden, outputs = widths
        self.stride = stride
        if expand:
            self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
            self.expand_norm = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(hidden)
        if squeeze:
            self.squeeze = nn.Conv2d(hidden, hidden // 4, 1)
            self.excite = nn.Conv2d(hidden // 4, hidden, 1)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(outputs)
        if shortcut:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        if stride == 1:
            nn.init.zeros_(self.project_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.expand_norm(self.expand(x))) if hasattr(self, "expand") else x
        y = F.hardswish(self.depthwise_norm(self.depthwise(y)))
        if hasattr(self, "squeeze"):
            y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = self.project_norm(self.project(y))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, padding=x.shape[-1] % 2)
        return y + (x if x.shape[1] == y.shape[1] else self.shortcut(x))


class TokenNorm(nn.Module):
    """Tokens (B, N, C) to mean 0 and variance 1 over tokens and channels together, then scaled by channel."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[2]
        return F.layer_norm(x, x.shape[1:], eps=self.eps) * self.weight[:channels] + self.bias[:channels]


class PositionBias(nn.Module):
    """What is added to the scores of attention, by the distance of two tokens on a grid of up to R x R, (h, N, N)."""

    def __init__(self, side: int, heads: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
        down, right = row[:, None] - row + side - 1, column[:, None] - column + side - 1
        self.index: Tensor
        self.register_buffer("index", down * (2 * side - 1) + right, persistent=False)

    def forward(self, side: int, heads: int) -> Tensor:
        index = self.index.view((self.side,) * 4)[:side, :side, :side, :side].reshape(side**2, side**2)
        return self.table[:, :heads][index].permute(2, 0, 1)


class Qkv(nn.Linear):
    """Queries, keys and values of all heads; how its rows are shared out is the attention's business."""

    def __init__(self, channels: int, head_dim: int, v_scale: int) -> None:
        super().__init__(channels, channels * (2 + v_scale), bias=False)
        self.head_dim = head_dim


class Attention(nn.Module):
    """Self-attention with wide values that are convolved on their grid, and a position bias."""

    def __init__(self, channels: int, head_dim: int, v_scale: int, side: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = Qkv(channels, head_dim, v_scale)
        width = v_scale * channels
        self.values = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.position = PositionBias(side, channels // head_dim)
        self.proj = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens, heads, d = x.shape[1], x.shape[2] // self.head_dim, self.head_dim
        side = math.isqrt(tokens)
        qkv_BhNx = self.qkv(x).unflatten(2, (heads, -1)).transpose(1, 2)  # by head, whatever the rows are called
        q, k, v = qkv_BhNx.split([d, d, qkv_BhNx.shape[3] - 2 * d], dim=3)
        maps = v.transpose(2, 3).flatten(1, 2).unflatten(2, (side, side))
        v = self.values(maps).flatten(2).unflatten(1, (heads, -1)).transpose(2, 3)
        scores = q @ k.transpose(2, 3) * d**-0.5 + self.position(side, heads)
        return self.proj(F.hardswish((scores.softmax(3) @ v).transpose(1, 2).flatten(2)))


class AttentionBlock(nn.Module):
    """Attention and MLP, each after a norm and beside a residual connection."""

    def __init__(self, channels: int, head_dim: int, ratio: int, v_scale: int, side: int) -> None:
        super().__init__()
        self.norm1 = TokenNorm(channels)
        self.attn = Attention(channels, head_dim, v_scale, side)
        self.norm2 = TokenNorm(channels)
        self.fc1 = nn.Linear(channels, int(ratio * channels))
        self.fc2 = nn.Linear(int(ratio * channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.hardswish(self.fc1(self.norm2(x))))


class ConvStage(nn.Module):
    """Convolution blocks on maps (B, C, R, R)."""

    def __init__(
        self, stage: Stage, width: int, channels: int, blocks: Sequence[tuple[int, int]], *, shortcuts: bool
    ) -> None:
        super().__init__()
        self.depth = len(blocks)
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList()
        for place, (ratio, kernel) in enumerate(blocks):
            self.blocks.append(
                ConvBlock(
                    (width, width * ratio, channels),
                    kernel,
                    1 if place else stage.stride,
                    expand=stage.expands,
                    squeeze=stage.squeeze,
                    shortcut=shortcuts or width != channels,
                )
            )
            width = channels

    def forward(self, x: Tensor) -> Tensor:
        return _through(self, x)


class AttentionStage(nn.Module):
    """Maps (B, C, R, R) in and out: a convolution block that reduces them, and attention blocks on their tokens."""

    def __init__(
        self,
        stage: Stage,
        width: int,
        channels: int,
        blocks: Sequence[tuple[int, int]],
        side: int,
        head_dim: int,
        *,
        shortcuts: bool,
    ) -> None:
        super().__init__()
        self.depth = len(blocks)
        self.grad_checkpointing = False
        self.reduction = ConvBlock(
            (width, REDUCTION_RATIO * width, channels),
            REDUCTION_KERNEL,
            stage.stride,
            expand=True,
            squeeze=True,
            shortcut=shortcuts or width != channels,
        )
        self.blocks = nn.ModuleList(
            AttentionBlock(channels, head_dim, ratio, v_scale, side) for ratio, v_scale in blocks
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduction(x)
        side = x.shape[-1]
        return _through(self, x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (side, side))


def _through(stage: ConvStage | AttentionStage, x: Tensor) -> Tensor:
    for block in list(stage.blocks)[: stage.depth]:
        again = stage.grad_checkpointing and torch.is_grad_enabled()
        x = checkpoint(block, x, use_reentrant=False) if again else block(x)
    return x


class Stem(nn.Module):
    """Images to maps of half the side."""

    def __init__(
        self, in_chans: int, stage: Stage, channels: int, blocks: Sequence[tuple[int, int]], *, shortcuts: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, channels, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.stage = ConvStage(stage, channels, channels, blocks, shortcuts=shortcuts)

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(F.hardswish(self.norm(self.conv(x))))


class ElasticViT(nn.Module):
    """The network of one architecture.

    Args:
        arch: Ten fields, see `Arch`.
        space: What it is drawn from: the published one, or another one, which may be plain data.
        num_classes: 0: no classifier.
        in_chans: Channels of an image.
        drop_rate: Dropout before the classifier.

    Raises:
        SettingError: An architecture that is not of that space.
    """

    roomy: ClassVar[bool] = False  # as the super-network's: entries as wide as their stage, shortcuts everywhere

    def __init__(
        self,
        *,
        arch: Sequence[Any],
        space: Space | Mapping[str, Any] = PUBLISHED,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.space = space if isinstance(space, Space) else Space.of(space)
        self.arch = self.space.checked(arch)
        self.in_chans, self.drop_rate, self.num_prefix_tokens = in_chans, drop_rate, 0
        self.stem, *stages = self._stages()
        self.stages = nn.Sequential(*stages)
        hidden = self.space.head_multiplier * self.num_features
        self.head_hidden_size = self.space.head_width
        self.head_expand = nn.Linear(self.num_features, hidden)
        self.head_norm = nn.BatchNorm1d(hidden)
        self.head_hidden = nn.Linear(hidden, self.head_hidden_size)
        self.reset_classifier(num_classes)

    @property
    def num_features(self) -> int:
        """Channels of the last stage."""
        return self.arch.channels[-1]

    def _stages(self) -> list[nn.Module]:
        width, side = 0, self.arch.res // 2
        made: list[nn.Module] = []
        everything = zip(self.space.stages, self.arch.channels, self.space.blocks(self.arch), strict=True)
        for stage, channels, blocks in everything:
            side = -(-side // stage.stride)
            width = channels if self.roomy else width
            if not made:
                made.append(Stem(self.in_chans, stage, channels, blocks, shortcuts=self.roomy))
            elif stage.is_conv:
                made.append(ConvStage(stage, width, channels, blocks, shortcuts=self.roomy))
            else:
                head_dim = self.space.head_dim
                made.append(AttentionStage(stage, width, channels, blocks, side, head_dim, shortcuts=self.roomy))
            width = channels
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_chans, H, W), which are resized where they are not of the size."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps (B, C, R, R) of the last stage."""
        return self.stages(self.stem(self._resized(x)))

    def _resized(self, x: Tensor) -> Tensor:
        size = (self.arch.res, self.arch.res)
        return x if x.shape[2:] == size else F.interpolate(x, size, mode="bicubic", align_corners=False)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of maps (B, C, R, R); with `pre_logits` what the classifier reads, (B, head_hidden_size)."""
        x = self.head_expand(x.flatten(2).transpose(1, 2))
        x = F.hardswish(self.head_norm(x.flatten(0, 1)).view_as(x)).mean(1)
        x = F.dropout(F.hardswish(self.head_hidden(x)), self.drop_rate, self.training)
        return x if pre_logits else self.classifier(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps after the stem and each stage, and, unless `intermediates_only`, what `forward_features` gives.

        Raises:
            SettingError: Another format than NCHW.
        """
        if output_fmt != "NCHW":
            raise SettingError(f"the stages of ElasticViT give maps, output_fmt NCHW: got {output_fmt!r}")
        wanted, last = feature_take_indices(1 + len(self.stages), indices)  # type: ignore[arg-type]
        maps = [self.stem(self._resized(x))]
        for stage in self.stages[:last] if stop_early and intermediates_only else self.stages:
            maps.append(stage(maps[-1]))
        taken = [maps[index] for index in wanted]
        return taken if intermediates_only else (maps[-1], taken)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels and reduction of the stem and each stage."""
        info, reduction = [], 2
        for place, (stage, channels) in enumerate(zip(self.space.stages, self.arch.channels, strict=True)):
            reduction *= stage.stride
            module = f"stages.{place - 1}" if place else "stem"
            info.append({"num_chs": channels, "reduction": reduction, "module": module})
        return info

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier. The mean over tokens is the only pooling there is."""
        if global_pool not in (None, "avg"):
            raise SettingError(f"ElasticViT takes the mean over tokens, global_pool 'avg': got {global_pool!r}")
        self.num_classes = num_classes
        self.classifier = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in (self.stem.stage, *self.stages):
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """As published: the stem and all convolution blocks, the entries of attention stages among them."""
        blocks = {name for name, module in self.named_modules() if isinstance(module, ConvBlock)}
        inside = ("stem.", *(f"{name}." for name in blocks))
        return {name for name, _ in self.named_parameters() if name.startswith(inside)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        inside = [(r"^stages\.(\d+)\.reduction", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": [*inside, (r"^head", (99999,))]}


def cfg(res: int, **others: Any) -> dict[str, Any]:
    """What timm is told of a model for images of that size."""
    return {
        "input_size": (3, res, res),
        "num_classes": 1000,
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "classifier",
        **others,
    }


GENERIC = "elasticvit"
_NAMES = {f"elasticvit_{short}_{arch.res}": arch for short, arch in NAMED.items()}

VARIANTS: Mapping[str, str] = {
    GENERIC: "ElasticViT of the architecture `arch` that it is given",
    **{
        name: f"{arch.res} px, {arch.channels[0]} to {arch.channels[-1]} channels, {sum(arch.depths)} blocks, "
        f"{macs(arch, strict_reference=True) / 1e6:.0f} million MACs by the authors' count"
        for name, arch in _NAMES.items()
    },
}
"""A line each."""

default_cfgs = generate_default_cfgs({GENERIC: cfg(224), **{name: cfg(arch.res) for name, arch in _NAMES.items()}})


def build(model: type[ElasticViT], name: str, res: int, arguments: Mapping[str, Any]) -> Any:
    """As timm builds models, for images of that size."""
    asked = arguments.get("pretrained_cfg_overlay") or {}
    overlay = {"input_size": (arguments.get("in_chans", 3), res, res), **asked}
    features = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(
        model, name, False, feature_cfg=features, **{**arguments, "pretrained_cfg_overlay": overlay}
    )


def _build(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> ElasticViT:
    if pretrained:
        raise ModelError(f"there are no weights of {name} alone: extract it from the super-network's")
    return build(ElasticViT, name, Arch.of(arguments["arch"]).res, arguments)


@register_model
def elasticvit(pretrained: bool = False, **arguments: Any) -> ElasticViT:
    """The network of any architecture: `arch`, and `space` where it is not of the published one."""
    if "arch" not in arguments:
        raise ModelError("elasticvit needs arch, the ten fields of an architecture")
    return _build(GENERIC, pretrained, arguments)


def _register(name: str, arch: Arch) -> None:
    def named(pretrained: bool = False, **arguments: Any) -> ElasticViT:
        return _build(name, pretrained, {"arch": arch, **arguments})

    named.__name__ = name
    register_model(named)


for _name, _arch in _NAMES.items():
    _register(_name, _arch)
