"""HSViT: each convolution kernel is a token; attention groups never talk to each other.

Paper:    Xu, Li, Lim, Creighton 2024, arXiv 2404.05196
Weights:  xuchenhao001/HSViT's layout, mapped by `hsvit_layout`; none are published
Differs:  all groups run as one batched product; the size of the map is computed from the layers, where the reference
          divides by the pools; a part of the groups is a model of its own; groups may be left out of the vote at random
Letters:  B images, K kernels, G groups, T = K / G tokens a group, D embed_dim
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.hsvit_layout import checkpoint_filter_fn
from anyvit.models.layers.grouped import AttentionGroups
from anyvit.models.layers.trunks import CnnTrunk, RepeatedChannels, conv_stages, last_map_of, map_size_of

VOTES = ("features", "logits")


class HSViT(nn.Module):
    """A classifier whose attention groups can each live on another device; their class tokens vote.

    Args:
        img_size: Height and width, or one number for both.
        in_chans: Channels of an image.
        num_classes: 0: no classifier.
        kernels: Output channels of each convolution stage. None at all: each channel of the input is a token.
        kernel_sizes: Of the first convolution of each stage, odd; or one number for all. Where the last is 0, there
            is no trunk and no projection: raw channels, which must have D pixels, are repeated as tokens.
        pools: Stride of the pooling that ends each stage.
        num_groups: G, which divides K. 0: no attention, the tokens themselves vote.
        embed_dim: D.
        depth: Blocks a group.
        num_heads: Heads a block, which divide D.
        drop_rate: Dropout of tokens and of attention weights.
        group_drop_rate: The chance of each group to be left out of an image's vote in training, so that fewer groups
            answer well too (ours).
        groups: Which of the G groups this model holds, rising. None: all. See `part`.
        backbone: A CNN of timm, whose last map takes the place of the stages that `kernels` and the like describe.
        pretrained_backbone: With timm's weights.
        freeze_backbone: It does not learn, and stays in evaluation mode.
        vote: What is averaged over the groups: "features", as published, or "logits", which is a different model.

    Raises:
        ModelError: Arguments that describe no model; the message names the values.
    """

    attention: nn.Module

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 32,
        in_chans: int = 3,
        num_classes: int = 10,
        kernels: Sequence[int] = (64, 128),
        kernel_sizes: int | Sequence[int] = 3,
        pools: Sequence[int] = (2, 2),
        num_groups: int = 16,
        embed_dim: int = 64,
        depth: int = 2,
        num_heads: int = 8,
        drop_rate: float = 0.2,
        group_drop_rate: float = 0.0,
        groups: Sequence[int] | None = None,
        backbone: str | None = None,
        pretrained_backbone: bool = False,
        freeze_backbone: bool = True,
        vote: str = "features",
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__", "pretrained_backbone")}
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        self.in_chans = in_chans
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.num_groups = num_groups
        self.num_prefix_tokens = 0
        self.group_drop_rate = group_drop_rate
        self.vote = _checked_vote(vote)
        sizes = _checked_sizes(kernels, kernel_sizes, pools)
        raw = not backbone and 0 in sizes[-1:]

        if backbone:
            self.num_kernels, *map_size = last_map_of(backbone, in_chans, self.img_size)
        else:
            self.num_kernels = [in_chans, *kernels][-1]
            map_size = [*(self.img_size if raw else map_size_of(self.img_size, sizes, pools))]
        if num_groups and self.num_kernels % num_groups:
            raise ModelError(f"num_groups {num_groups} does not divide the {self.num_kernels} kernels of the last map")
        self.tokens_per_group = self.num_kernels // max(1, num_groups)
        self.groups = _checked_groups(groups, num_groups)
        tokens = _rows(self.groups, self.tokens_per_group) if num_groups else list(range(self.num_kernels))

        self.trunk: nn.Module
        if backbone:
            wanted = None if len(tokens) == self.num_kernels else tokens
            self.trunk = CnnTrunk(backbone, in_chans, wanted, pretrained=pretrained_backbone, frozen=freeze_backbone)
        elif raw or not kernels:
            self.trunk = RepeatedChannels(in_chans, tokens)
        else:
            self.trunk = conv_stages(in_chans, kernels, sizes, pools, last=len(tokens))
        self.embed = _embedding(map_size[0] * map_size[1], embed_dim, drop_rate, raw=raw)
        self.attention = nn.Identity()
        if num_groups:
            self.attention = AttentionGroups(
                len(self.groups), self.tokens_per_group, embed_dim, depth, num_heads, drop_rate
            )
        self.norm = nn.LayerNorm(embed_dim)
        self.reset_classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_chans, H, W).

        Raises:
            SettingError: Images of another size, or with another number of channels.
        """
        weights = self.draw_votes(x.shape[0])  # first, so that processes with different groups draw the same
        return self.forward_head(self.forward_features(x), weights=weights)

    def forward_features(self, x: Tensor) -> Tensor:
        """Class tokens (B, G, D) of the groups held, not yet normalized: the groups vote first."""
        return self.attend(self.tokens(x))

    def tokens(self, x: Tensor) -> Tensor:
        """Tokens (B, G * T, D) of the groups held: one for each kernel."""
        if tuple(x.shape[1:]) != (self.in_chans, *self.img_size):
            raise SettingError(
                f"images are {' x '.join(map(str, x.shape[1:]))} and the model takes {self.in_chans} channels of "
                f"{self.img_size[0]} x {self.img_size[1]} pixels: convert them, or build it with in_chans and img_size"
            )
        return self.embed(self.trunk(x).flatten(2))

    def attend(self, tokens: Tensor) -> Tensor:
        """Class tokens (B, G, D) of tokens (B, G * T, D), every group for itself in one batched pass."""
        return self.attention(tokens)

    def draw_votes(self, images: int, groups: Sequence[int] | None = None) -> Tensor | None:
        """In training, which of `groups` vote for each image, (B, groups), at least one. None: all do.

        Args:
            images: B.
            groups: None: those held. The draw is the same whichever they are.
        """
        if not self.training or not self.group_drop_rate or self.num_groups < 2:
            return None
        votes = torch.rand(images, self.num_groups, device=self.norm.weight.device) >= self.group_drop_rate
        votes = votes[:, list(self.groups if groups is None else groups)]
        return votes | ~votes.any(dim=1, keepdim=True)

    def forward_head(self, x: Tensor, pre_logits: bool = False, *, weights: Tensor | None = None) -> Tensor:
        """The vote.

        Args:
            x: Class tokens (B, any number of groups, D).
            pre_logits: Give the averaged, normalized feature (B, D) instead of logits.
            weights: Which groups count, (B, groups). None: all alike.
        """
        if self.vote == "logits" and not pre_logits:
            return _mean(self.head(self.norm(x)), weights)
        x = self.norm(_mean(x, weights))
        return x if pre_logits else self.head(x)

    def part(self, groups: Sequence[int]) -> HSViT:
        """The model of these groups alone, of those held here, in memory of its own.

        The very last convolution keeps only their channels. Its vote is that of its groups.

        Raises:
            ModelError: Groups that are not held here, or there are none.
        """
        return self._part(groups, copy=True)

    def subnetwork(self, groups: int) -> HSViT:
        """The first so many of the groups held; its weights are views of this model's."""
        return self._part(self.groups[:groups], copy=False)

    def _part(self, groups: Sequence[int], *, copy: bool) -> HSViT:
        if missing := sorted(set(groups) - set(self.groups)):
            raise ModelError(f"groups {missing} are not held here: this model has {list(self.groups)}")
        places = [self.groups.index(group) for group in groups]
        first_to_last = places == list(range(places[0], places[-1] + 1)) if places else False
        per_group = rows_per_group(self)
        state = {}
        for name, tensor in self.state_dict().items():
            if rows := per_group.get(name):
                wanted = _rows(places, rows)
                tensor = tensor[wanted[0] : wanted[-1] + 1] if first_to_last else tensor[wanted]
            state[name] = tensor.clone() if copy else tensor
        with torch.device("meta"):
            part = HSViT(**{**self.arguments, "groups": tuple(groups)})
        part.load_state_dict(state, assign=True)
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(self.get_parameter(name).requires_grad)
        part.set_grad_checkpointing(getattr(self.attention, "grad_checkpointing", False))
        for name in ("pretrained_cfg", "default_cfg"):
            if hasattr(self, name):
                setattr(part, name, getattr(self, name))
        return part.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps after the stages of the trunk, and, unless `intermediates_only`, what `forward_features` gives.

        Raises:
            SettingError: Another format than NCHW.
        """
        if output_fmt != "NCHW":
            raise SettingError(f"the stages of HSViT give maps, output_fmt NCHW: got {output_fmt!r}")
        stages = list(self.trunk) if isinstance(self.trunk, nn.Sequential) else [self.trunk]
        wanted, _ = feature_take_indices(len(stages), indices)  # type: ignore[arg-type]
        maps = list(accumulate(stages, lambda state, stage: stage(state), initial=x))[1:]
        taken = [maps[index] for index in wanted]
        return taken if intermediates_only else (self.attend(self.embed(maps[-1].flatten(2))), taken)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels and reduction of each stage of the trunk."""
        pools = self.arguments["pools"] if isinstance(self.trunk, nn.Sequential) else ()
        info, reduction = [], 1
        for index, pool in enumerate(pools):
            reduction *= max(1, pool)
            channels = self.trunk[index].conv2.out_channels  # type: ignore[index]
            info.append({"num_chs": channels, "reduction": reduction, "module": f"trunk.{index}"})
        return info

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier. The mean over groups is the only pooling there is."""
        if global_pool not in (None, "avg"):
            raise SettingError(f"the groups of HSViT vote by their mean, global_pool 'avg': got {global_pool!r}")
        self.num_classes = self.arguments["num_classes"] = num_classes
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if isinstance(self.attention, AttentionGroups):
            self.attention.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """What timm leaves without decay elsewhere: tables, norms and biases. Stacked by group they have two axes."""
        names = (name for name, _ in self.attention.named_parameters(prefix="attention"))
        return {name for name in names if not re.search(r"(qkv|proj)\.weight$", name)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^trunk|^embed|^attention\.(cls|pos)", "blocks": [(r"^attention\.blocks\.(\d+)", None)]}


def rows_per_group(model: HSViT) -> dict[str, int]:
    """By name of parameter or buffer, how many rows of its first axis each group owns; all else is shared by all.

    So a part's tensor is rows `g * n` to `(g + 1) * n` of the whole one, for each of its groups g.
    """
    own = {f"attention.{name}": 1 for name in model.attention.state_dict()}
    if isinstance(model.trunk, nn.Sequential) and model.groups:
        last = len(model.trunk) - 1
        names = ("conv2.weight", "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var")
        own |= {f"trunk.{last}.{name}": model.tokens_per_group for name in names}
    return own


def _rows(places: Sequence[int], rows: int) -> list[int]:
    return [place * rows + row for place in places for row in range(rows)]


def _mean(x: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return x.mean(dim=1)
    weights = weights.to(x.dtype)
    return torch.einsum("bg,bgd->bd", weights / weights.sum(dim=1, keepdim=True), x)


def _embedding(pixels: int, embed_dim: int, drop_rate: float, *, raw: bool) -> nn.Module:
    """One projection for all channels; raw channels are tokens as they are."""
    if not raw:
        return nn.Sequential(nn.Linear(pixels, embed_dim), nn.ReLU(inplace=True), nn.Dropout(drop_rate))
    if pixels != embed_dim:
        raise ModelError(f"without convolution each channel is a token: its {pixels} pixels must be {embed_dim=}")
    return nn.Identity()


def _checked_sizes(kernels: Sequence[int], kernel_sizes: int | Sequence[int], pools: Sequence[int]) -> tuple[int, ...]:
    sizes = (kernel_sizes,) * len(kernels) if isinstance(kernel_sizes, int) else tuple(kernel_sizes)
    if not len(kernels) == len(sizes) == len(pools):
        raise ModelError(
            "each stage has a number of kernels, a kernel size and a pool: "
            f"got {list(kernels)}, {list(sizes)} and {list(pools)}"
        )
    if any(size % 2 == 0 for size in sizes[:-1]) or any(size and size % 2 == 0 for size in sizes[-1:]):
        raise ModelError(f"kernel sizes must be odd, or the map changes its size: got {list(sizes)}")
    return sizes


def _checked_vote(vote: str) -> str:
    if vote not in VOTES:
        raise ModelError(f"vote must be one of {', '.join(VOTES)}: got {vote!r}")
    return vote


def _checked_groups(groups: Sequence[int] | None, num_groups: int) -> tuple[int, ...]:
    held = tuple(range(num_groups)) if groups is None else tuple(groups)
    if num_groups and (not held or sorted(set(held)) != list(held) or not 0 <= held[0] <= held[-1] < num_groups):
        raise ModelError(f"groups must be rising numbers from 0 to {num_groups - 1}, at least one: got {list(held)}")
    return held


@dataclass(frozen=True, slots=True)
class Variant:
    """A shape with a name: C conv stages and A blocks in each attention group, as published."""

    name: str
    summary: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


PUBLISHED_KERNELS = (64, 128, 256, 512)
WIDE_KERNELS = (128, 256, 512, 512)


def _variant(name: str, size: int, kernels: Sequence[int], pools: Sequence[int], depth: int, **more: Any) -> Variant:
    shape = {"img_size": size, "kernels": tuple(kernels), "pools": tuple(pools), "depth": depth, **more}
    groups = more.get("num_groups", 16)
    summary = f"{size} px, {len(kernels)} conv stages, {kernels[-1]} tokens in {groups} groups, {depth} blocks each"
    return Variant(name, summary, shape)


def _published(size: int, pools: Mapping[int, Sequence[int]], **more: Any) -> list[Variant]:
    depths = {2: 2, 3: 4, 4: 8}
    return [
        _variant(f"hsvit_c{stages}a{depth}_{size}", size, PUBLISHED_KERNELS[:stages], pools[stages], depth, **more)
        for stages, depth in depths.items()
    ]


_SMALL = {2: (2, 2), 3: (2, 1, 2), 4: (2, 1, 2, 1)}
_TINY_IMAGENET = {2: (4, 2), 3: (2, 2, 2), 4: (2, 2, 2, 1)}
_FOOD = {2: (4, 4), 3: (4, 2, 2), 4: (2, 2, 2, 2)}
_DIGITS = {"num_groups": 4, "embed_dim": 32, "num_heads": 4}

VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        _variant("hsvit_c2a2_8", 8, (16, 32), (2, 1), 2, **_DIGITS),
        *_published(28, _SMALL, in_chans=1),
        *_published(32, _SMALL),
        *_published(64, _TINY_IMAGENET, num_classes=200),
        *_published(128, _FOOD, num_classes=101),
        _variant("hsvit_wide_c4a8_28", 28, WIDE_KERNELS, _SMALL[4], 8, in_chans=1),
        _variant("hsvit_wide_c4a8_32", 32, WIDE_KERNELS, _SMALL[4], 8),
        _variant("hsvit_wide_c4a8_64", 64, WIDE_KERNELS, _TINY_IMAGENET[4], 8, num_classes=200),
        _variant("hsvit_c5a8_256", 256, (32, *PUBLISHED_KERNELS), (2,) * 5, 8, num_classes=1000),
        Variant(
            "hsvit_resnet50_224",
            "224 px, frozen ResNet-50, 2048 tokens in 64 groups, 2 blocks each",
            {
                **{"img_size": 224, "backbone": "resnet50", "num_classes": 1000},
                **{"num_groups": 64, "depth": 2, "embed_dim": 56},
            },
        ),
    )
}
_CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
_IMAGENET = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
_NONE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def _statistics(size: int) -> dict[str, Any]:
    """What the reference normalizes images of this size with."""
    return {8: _NONE, 28: _NONE, 32: _CIFAR, 128: _NONE}.get(size, _IMAGENET)


default_cfgs = generate_default_cfgs(
    {
        variant.name: {
            "input_size": (variant.arguments.get("in_chans", 3),) + 2 * (variant.arguments["img_size"],),
            "num_classes": variant.arguments.get("num_classes", 10),
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "first_conv": "trunk.0.conv1",
            "classifier": "head",
            **_statistics(variant.arguments["img_size"]),
        }
        for variant in VARIANTS.values()
    }
)


def _register(variant: Variant) -> None:
    def build(pretrained: bool = False, **arguments: Any) -> HSViT:
        """No weights are published: `pretrained` is for the CNN of a hybrid."""
        arguments = {**variant.arguments, **arguments}
        if pretrained and not arguments.get("backbone"):
            raise ModelError(f"there are no pretrained weights of {variant.name}: train it from scratch")
        return build_model_with_cfg(
            HSViT, variant.name, False, pretrained_strict=False, **arguments, pretrained_backbone=pretrained
        )

    build.__name__ = variant.name
    register_model(build)


for _each in VARIANTS.values():
    _register(_each)


_WORDS = {
    "num_channels": "in_chans",
    "image_size": "img_size",
    "conv_kernel_nums": "kernels",
    "conv_kernel_sizes": "kernel_sizes",
    "pool_strides": "pools",
    "attn_num": "num_groups",
    "attn_depth": "depth",
    "attn_embed_dim": "embed_dim",
    "num_heads": "num_heads",
    "num_classes": "num_classes",
    "dropout": "drop_rate",
}
"""The reference's words, and ours."""


def from_reference(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> HSViT:
    """The model that weights in the reference's layout belong to.

    Args:
        weights: Of the model, or of its hybrid form; without the CNN's weights the model takes its maps.
        config: The reference's own words, such as `image_size` and `pool_strides`, which shapes do not tell.

    Raises:
        SettingError: A word that is missing or unknown.
        ModelError: Weights that are not those of the model described.
    """
    config = dict(config or {})
    path, pixels, kernels = (
        config.pop(word, None) for word in ("sub_module_path", "sub_module_feature_size", "conv_kernel_num")
    )
    hybrid = {}
    if path is not None:
        side, config_of_map = math.isqrt(pixels or 0), not any("conv2d_submodule" in name for name in weights)
        maps = {"kernels": (), "pools": (), "img_size": side, "in_chans": kernels}
        cnn = {"backbone": path.rpartition("/")[2].replace("-", ""), "img_size": 32 * side}
        hybrid = maps if config_of_map else cnn
        if not config.pop("enable_conv_layer", True):
            raise SettingError("enable_conv_layer: the hybrid form without its CNN is not supported")
    if unknown_words := sorted(config.keys() - _WORDS.keys()):
        raise SettingError(f"unknown words in config: {', '.join(unknown_words)}. Known: {', '.join(_WORDS)}")
    needed = {"num_heads", "attn_num"} | (set() if hybrid else {"image_size", "conv_kernel_nums", "pool_strides"})
    if missing := sorted(needed - config.keys()):
        raise SettingError(f"the weights' shapes do not tell {', '.join(missing)}: give them in config")
    model = HSViT(**{**{_WORDS[word]: value for word, value in config.items()}, **hybrid})
    try:
        model.load_state_dict(checkpoint_filter_fn(weights, model))
    except RuntimeError as error:
        raise ModelError(f"these weights are not those of the model described: {error}") from None
    return model
