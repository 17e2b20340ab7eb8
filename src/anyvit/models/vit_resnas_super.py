"""ViT-ResNAS's super-network: a subnetwork is its first channels, heads and hidden units, with blocks left out.

Paper:    Liao, Karaman, Sze 2021, arXiv 2109.00642
Weights:  as in `vit_resnas`; they are those of its largest network
Differs:  masks are drawn before a pass, so a block is the plain network's own; which widths there are is an argument
Letters:  as in `vit_resnas`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from anyvit.errors import ModelError, unknown
from anyvit.models.layers.channel_drop import ChannelDrop, prefix_mask
from anyvit.models.layers.masked import masked_layer_norm
from anyvit.models.layers.rewiring import order_heads, order_hidden
from anyvit.models.vit_resnas import ViTResNAS, build, cfg
from anyvit.models.vit_resnas_layers import Block, Reduction
from anyvit.models.vit_resnas_layout import NetworkDef, check_inside, cut, read_network_def
from anyvit.models.vit_resnas_space import PUBLISHED, SHARES, read_space, sizes, space_of

SAMPLING = ("multi", "single", "hybrid")

Masks = Mapping[str, Tensor]
"""Of an entry: which channels are on, (B, 1, C) bool, by the names of `Choices`."""


class ViTResNASSuper(ViTResNAS):
    """All networks of a space in one set of weights. In evaluation it answers as the largest, where none is named.

    Args:
        space: The widths of each entry; see `vit_resnas_space.read_space`. None: shares of the network's own sizes.
        examples_per_arch: How many examples of a batch share an architecture in training.
        sampling: "multi", several architectures in a batch; "single", one; "hybrid", one width of the embedding and of
            each reduction, but several architectures of blocks.
        arguments: Those of `ViTResNAS`; `network_def` is that of the largest network.

    Raises:
        ModelError: Arguments that describe no model; the message names the values.
    """

    def __init__(
        self,
        *,
        space: Sequence[Any] | None = None,
        examples_per_arch: int = 1,
        sampling: str = "multi",
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        if sampling not in SAMPLING:
            raise ModelError(unknown("sampling", sampling, SAMPLING))
        self.space = space_of(self.network_def) if space is None else read_space(space, self.network_def)
        self.drops: list[dict[str, ChannelDrop]] = [
            {
                name: ChannelDrop(
                    getattr(choices, name),
                    max(getattr(choices, name)),
                    examples_per_arch=examples_per_arch,
                    single_arch=sampling == "single" or (sampling == "hybrid" and name == "width"),
                )
                for name in choices.__slots__
                if getattr(choices, name)
            }
            for choices in self.space
        ]

    def forward(self, x: Tensor, network_def: Sequence[Any] | None = None) -> Any:
        """Logits (B, num_classes) of images (B, in_chans, H, W); in training, with a second output, a pair.

        Args:
            x: Images.
            network_def: The subnetwork that answers, by masks. None: in training those that are drawn, in evaluation
                the largest.

        Raises:
            ModelError: A network_def that is no part of this one.
            SettingError: In training, a batch that the architectures cannot share.
        """
        if network_def is None and not self.training:
            return super().forward(x)
        kept = self._drawn(len(x)) if network_def is None else self._fixed(network_def, len(x))
        masks = [
            {name: prefix_mask(widths.to(x.device), sizes(entry)[name]) for name, widths in own.items()}
            for entry, own in zip(self.network_def, kept, strict=True)
        ]
        return self.forward_head(self._masked(x, masks))

    def _drawn(self, batch: int) -> list[dict[str, Tensor]]:
        """By entry, how many channels each example keeps; an absent block takes the next ones along that may go."""
        found, above = [], None
        for drops in self.drops:
            kept = {name: drop.draw(batch) for name, drop in drops.items()}
            if "layer" in kept and above is not None:
                kept["layer"] = torch.minimum(kept["layer"], above)
            above = kept.get("layer")
            found.append(kept)
        return found

    def _fixed(self, network_def: Sequence[Any], batch: int) -> list[dict[str, Tensor]]:
        return [
            {name: torch.tensor(size).expand(batch) for name, size in sizes(entry).items()}
            for entry in self._part(network_def)
        ]

    def _part(self, network_def: Sequence[Any]) -> NetworkDef:
        part = read_network_def(network_def, img_size=self.img_size)
        check_inside(part, self.network_def)
        return part

    def _masked(self, x: Tensor, masks: Sequence[Masks]) -> Tensor:
        """Normalized tokens (B, N, C), 0 where a subnetwork has no channel."""
        width = masks[0].get("width")
        x = _only(self.embed(x), width)
        for block, own in zip(self.blocks, masks[1:-1], strict=True):
            if isinstance(block, Reduction):
                x = self.run(_masked_reduction, block, x, width, own.get("width"))
                width = own.get("width")
            elif isinstance(block, Block):
                x = self.run(_masked_block, block, x, width, own)
        return masked_layer_norm(x, self.norm, width)

    def set_epoch(self, epoch: int, *, warmup_epochs: int = 15) -> None:
        """Which widths training draws from: at first the widest, from `warmup_epochs` on all."""
        for drops in self.drops:
            for drop in drops.values():
                drop.set_epoch(epoch, warmup_epochs)

    def rewire(self) -> None:
        """Order the heads and hidden units of each block by the size of their weights; the function stays the same."""
        for block in self.blocks:
            if isinstance(block, Block):
                order_heads(block.attn.qkv, block.attn.proj, block.attn.num_heads)
                order_hidden(cast(nn.Linear, block.mlp.fc1), cast(nn.Linear, block.mlp.fc2))

    def extract(self, network_def: Sequence[Any]) -> ViTResNAS:
        """A subnetwork as a plain model with weights of its own. Absent blocks keep their number, without weights.

        The statistics of its BatchNorms are those of the super-network: see `anyvit.training.batch_norm`.

        Raises:
            ModelError: It is no part of this network; the message names the entry.
        """
        part = self._part(network_def)
        with torch.device("meta"):
            model = ViTResNAS(network_def=part, **self.arguments)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        model.load_state_dict(cut(self.state_dict(), shapes), assign=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.get_parameter(name).requires_grad)
        for name in ("pretrained_cfg", "default_cfg"):
            if hasattr(self, name):
                setattr(model, name, getattr(self, name))
        return model.train(self.training)


def searchable(model: ViTResNAS, **arguments: Any) -> ViTResNASSuper:
    """The super-network over the weights of a model, which stay that model's.

    Args:
        model: Its largest network, such as `anyvit.load_reference` builds of a published super-network.
        arguments: `space`, `examples_per_arch` and `sampling` of `ViTResNASSuper`.
    """
    with torch.device("meta"):
        supernet = ViTResNASSuper(network_def=model.network_def, **model.arguments, **arguments)
    supernet.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    return supernet.train(model.training)


def _masked_reduction(reduction: Reduction, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
    return _only(reduction.reduce(x, masked_layer_norm(x, reduction.norm, before)), after)


def _masked_block(block: Block, x: Tensor, width: Tensor | None, own: Masks) -> Tensor:
    attn, mlp, output = block.attn, block.mlp, _both(width, own.get("layer"))
    mixed = _only(attn.mix(masked_layer_norm(x, block.norm1, width)), own.get("attn"))
    x = x + block.drop_path1(_only(attn.proj_drop(attn.proj(mixed)), output))
    hidden = _only(mlp.act(mlp.fc1(masked_layer_norm(x, block.norm2, width))), own.get("mlp"))
    return x + block.drop_path2(_only(mlp.drop2(mlp.fc2(mlp.drop1(hidden))), output))


def _only(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one & other


_SUPER = {"tiny": "super_tiny", "small": "super_small"}

VARIANTS: Mapping[str, str] = {
    f"vit_resnas_{published}_224": f"224 px, super-network whose subnetworks of {share} size are searched"
    for share, published in _SUPER.items()
}

default_cfgs = generate_default_cfgs({name: cfg() for name in VARIANTS})


def _register(share: str, published: str) -> None:
    network_def = PUBLISHED[published]

    def entry(pretrained: bool = False, **arguments: Any) -> ViTResNAS:
        own = {} if "network_def" in arguments else {"space": space_of(network_def, SHARES[share])}
        name = f"vit_resnas_{published}_224"
        return build(ViTResNASSuper, name, network_def, pretrained=pretrained, **{**own, **arguments})

    entry.__name__ = f"vit_resnas_{published}_224"
    register_model(entry)


for _share, _published in _SUPER.items():
    _register(_share, _published)
