"""ElasticViT's super-network: one set of weights, of which every architecture of a space uses the leading part.

Paper:    Tang, Zhang, Cui, et al., ICCV 2023, arXiv 2303.09730
Weights:  microsoft/Moonlit's layout, mapped by `elasticvit_layout`
Differs:  built as the largest network of the space, whose layers then cut themselves to what they are given;
          post-norm, norms over the batch in attention and window attention are not here
Letters:  as in `elasticvit`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from anyvit.errors import ModelError
from anyvit.models.elasticvit import AttentionStage, ConvBlock, ElasticViT, PositionBias, Qkv, build, cfg
from anyvit.models.elasticvit_layout import checkpoint_filter_fn, space_of
from anyvit.models.elasticvit_macs import REDUCTION_KERNEL, REDUCTION_RATIO, macs
from anyvit.models.elasticvit_space import PUBLISHED, Arch, Space


class _Conv2d(nn.Conv2d):
    """Leading channels, and the centre of the kernel. It takes as many channels as it is given."""

    outputs: int | None = None  # all of them
    kernel: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        depthwise, inputs = self.groups > 1, x.shape[1]
        rows = inputs if depthwise else self.outputs
        weight = self.weight[:rows, : None if depthwise else inputs]
        weight = cut_kernel(weight, self.kernel or weight.shape[-1])
        bias = None if self.bias is None else self.bias[:rows]
        smaller = self.weight.shape[-1] - weight.shape[-1]
        padding = cast(tuple[int, ...], self.padding)[0] - smaller // 2
        return F.conv2d(x, weight, bias, self.stride, padding, groups=inputs if depthwise else 1)


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Leading channels, whose running statistics it updates in place."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        channels, momentum = x.shape[1], self.momentum
        if self.training:
            self.num_batches_tracked.add_(1)
            momentum = 1 / self.num_batches_tracked.item() if momentum is None else momentum
        mean, variance = self.running_mean[:channels], self.running_var[:channels]
        weight, bias = self.weight[:channels], self.bias[:channels]
        return F.batch_norm(x, mean, variance, weight, bias, self.training, momentum or 0.0, self.eps)


class _BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    pass


class _BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    pass


class _Linear(nn.Linear):
    """Leading rows and columns."""

    outputs: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[: self.outputs, : x.shape[-1]], self.bias[: self.outputs])


class _Qkv(Qkv):
    """Leading rows of the queries, of the keys and of the values of the largest network, and leading columns."""

    v_scale: int = 1

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, cut_qkv(self.weight, x.shape[-1], self.v_scale))


_ELASTIC = {
    nn.Conv2d: _Conv2d,
    nn.BatchNorm2d: _BatchNorm2d,
    nn.BatchNorm1d: _BatchNorm1d,
    nn.Linear: _Linear,
    Qkv: _Qkv,
}


def cut_kernel(weight: Tensor, kernel: int) -> Tensor:
    """The centre, kernel x kernel, of each kernel (O, I, K, K)."""
    margin = (weight.shape[-1] - kernel) // 2
    return weight[..., margin : weight.shape[-2] - margin, margin : weight.shape[-1] - margin]


def cut_qkv(weight: Tensor, channels: int, v_scale: int) -> Tensor:
    """The rows (channels * (2 + v_scale), channels) of weights (C * (2 + V), C)."""
    most = weight.shape[1]
    starts = ((0, channels), (most, channels), (2 * most, v_scale * channels))
    return torch.cat([weight[start : start + rows, :channels] for start, rows in starts])


def cut_table(table: Tensor, side: int) -> Tensor:
    """The entries for a grid of side x side, ((2 * side - 1)^2, h)."""
    most = round(len(table) ** 0.5)
    margin = (most - 2 * side + 1) // 2
    grid = table.unflatten(0, (most, most))[margin : most - margin, margin : most - margin]
    return grid.flatten(0, 1)


class ElasticSuperViT(ElasticViT):
    """All networks of a space in one set of weights. It answers as the active one; at first that is the largest.

    Args:
        space: The published one, or another one, which may be plain data.
        arguments: `num_classes`, `in_chans` and `drop_rate` of ElasticViT.
    """

    roomy: ClassVar[bool] = True
    stem: Any
    head_expand: Any

    def __init__(self, *, space: Space | Mapping[str, Any] = PUBLISHED, **arguments: Any) -> None:
        space = space if isinstance(space, Space) else Space.of(space)
        super().__init__(arch=space.largest, space=space, **arguments)
        self._become_elastic()

    def _become_elastic(self) -> None:
        for module in self.modules():
            module.__class__ = _ELASTIC.get(type(module), type(module))
        self.set_arch(self.arch)

    @property
    def active(self) -> Arch:
        """The architecture that answers."""
        return self.arch

    def set_arch(self, arch: Sequence[Any]) -> None:
        """Answer as this architecture from now on.

        Raises:
            SettingError: It is not of the space.
        """
        self.arch = self.space.checked(arch)
        width = self.arch.channels[0]
        self.stem.conv.outputs = width
        stages: Sequence[Any] = (self.stem.stage, *self.stages)
        for stage, channels, blocks in zip(stages, self.arch.channels, self.space.blocks(self.arch), strict=True):
            stage.depth = len(blocks)
            if isinstance(stage, AttentionStage):
                _set_conv_block(stage.reduction, width, REDUCTION_RATIO, REDUCTION_KERNEL, channels)
            for block, (ratio, size) in zip(stage.blocks, blocks, strict=False):
                if isinstance(block, ConvBlock):
                    _set_conv_block(block, width, ratio, size, channels)
                else:
                    _set_attention_block(block, channels, ratio, size)
                width = channels
        self.head_expand.outputs = self.space.head_multiplier * width

    def extract(self, arch: Sequence[Any] | None = None) -> ElasticViT:
        """The network of an architecture, the active one by default, in memory of its own, with the same answers.

        Raises:
            SettingError: It is not of the space.
        """
        arch = self.arch if arch is None else self.space.checked(arch)
        with torch.random.fork_rng(devices=[]):
            plain = ElasticViT(
                arch=arch,
                space=self.space,
                num_classes=self.num_classes,
                in_chans=self.in_chans,
                drop_rate=self.drop_rate,
            )
        like = next(self.parameters())
        plain.to(like.device, like.dtype)
        with torch.no_grad():
            for name, module in plain.named_modules():
                _copy(self.get_submodule(name), module)
        for name in ("pretrained_cfg", "default_cfg"):
            if hasattr(self, name):
                setattr(plain, name, {**getattr(self, name), "input_size": (self.in_chans, arch.res, arch.res)})
        return plain.train(self.training)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        self.classifier.__class__ = _ELASTIC.get(type(self.classifier), type(self.classifier))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refused: what is computed again in backward would be of the architecture that is active then."""
        if enable:
            raise ModelError("a super-network cannot checkpoint its gradients: its active network changes in a step")


def _set_conv_block(block: Any, inputs: int, ratio: int, kernel: int, outputs: int) -> None:
    hidden = inputs * ratio
    block.depthwise.kernel = kernel
    block.project.outputs = block.shortcut.outputs = outputs
    if hasattr(block, "expand"):
        block.expand.outputs = hidden
    if hasattr(block, "squeeze"):
        block.squeeze.outputs, block.excite.outputs = hidden // 4, hidden


def _set_attention_block(block: Any, channels: int, ratio: int, v_scale: int) -> None:
    block.attn.qkv.v_scale = v_scale
    block.fc1.outputs = int(ratio * channels)
    block.attn.proj.outputs = block.fc2.outputs = channels


def _copy(whole: nn.Module, part: nn.Module) -> None:
    """Give the layer `part` its share of the same layer of the super-network."""
    for name, tensor in part.state_dict().items():
        if "." in name:
            continue  # of a layer within
        source = getattr(whole, name)
        if isinstance(part, Qkv):
            source = cut_qkv(source, tensor.shape[1], tensor.shape[0] // tensor.shape[1] - 2)
        elif isinstance(part, PositionBias):
            source = cut_table(source, part.side)
        elif isinstance(part, nn.Conv2d) and name == "weight":
            source = cut_kernel(source, tensor.shape[-1])
        tensor.copy_(source[tuple(slice(size) for size in tensor.shape)])


SUPER, GENERIC = "elasticvit_super_256", "elasticvit_super"

VARIANTS: Mapping[str, str] = {
    SUPER: f"ElasticViT's super-network, {macs(PUBLISHED.smallest, strict_reference=True) / 1e6:.0f} to "
    f"{macs(PUBLISHED.largest, strict_reference=True) / 1e6:.0f} million MACs by the authors' count",
    GENERIC: "an ElasticViT super-network of the `space` that it is given",
}
"""A line each."""

default_cfgs = generate_default_cfgs({SUPER: cfg(256), GENERIC: cfg(256)})


def _build(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> ElasticSuperViT:
    if pretrained:
        raise ModelError(f"the weights of {name} are no download of timm: give their file to anyvit.load_reference")
    space = arguments.get("space", PUBLISHED)
    res = (space if isinstance(space, Space) else Space.of(space)).resolutions[-1]
    return build(ElasticSuperViT, name, res, arguments)


@register_model
def elasticvit_super_256(pretrained: bool = False, **arguments: Any) -> ElasticSuperViT:
    """The published super-network."""
    return _build(SUPER, pretrained, arguments)


@register_model
def elasticvit_super(pretrained: bool = False, **arguments: Any) -> ElasticSuperViT:
    """A super-network of any `space`."""
    return _build(GENERIC, pretrained, arguments)


def from_reference(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> ElasticSuperViT:
    """The super-network that weights in the reference's layout belong to. Its largest network answers at first.

    Args:
        weights: Of the super-network.
        config: The reference's own words for its space, such as `max_channels`. None: the published one.

    Raises:
        SettingError: A word that is missing or unknown, or that asks for what is not here.
        ModelError: Weights that are not those of the super-network described.
    """
    space = PUBLISHED if config is None else space_of(config)
    ours = checkpoint_filter_fn(weights)
    if "classifier.bias" not in ours:
        raise ModelError("these are not the weights of an ElasticViT super-network: classifer.bias is missing")
    model = ElasticSuperViT(space=space, num_classes=len(ours["classifier.bias"]))
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise ModelError(f"these weights are not those of the super-network described: {error}") from None
    return model
