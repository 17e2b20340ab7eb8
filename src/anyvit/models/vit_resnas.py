"""ViT-ResNAS: a ViT of three stages, whose token grid is halved between them by a residual block.

Paper:    Liao, Karaman, Sze 2021, arXiv 2109.00642
Weights:  yilunliao/vit-search, whose layout is ours; published for non-commercial use (CC BY-NC 4.0)
Differs:  written from the paper's description; where there are two tokens, evaluation averages both answers as timm
          does, and training gives both
Letters:  B images, T prefix tokens, N tokens in all, C channels, S patches a side
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError, unknown
from anyvit.models.vit_resnas_layers import EPS, Block, ConvEmbedding, LinearEmbedding, Reduction
from anyvit.models.vit_resnas_layout import (
    PATCH,
    NetworkDef,
    mid_of,
    read_network_def,
    resized,
    with_classes,
    with_grids,
)
from anyvit.models.vit_resnas_space import PUBLISHED

PATCH_OUTPUTS = ("seq", "avg")


class ViTResNAS(nn.Module):
    """A classifier that a `network_def` describes.

    Args:
        network_def: Nested tuples or lists; see `vit_resnas_layout`.
        img_size: Pixels a side, a multiple of 14 and as often of 2 as there are reductions.
        in_chans: Channels of an image.
        num_classes: Must be the head's; None: whatever it says. 0: no head.
        distilled: With a distillation token and its head.
        patch_output: A head for the patches, in training: "seq" answers for each, "avg" for their mean.
        drop_rate: Dropout of tokens, projections and hidden units.
        drop_path_rate: How often the last block is skipped in training; from 0 at the first, absent ones counted.

    Raises:
        ModelError: Arguments that describe no model; the message names the values.
    """

    cls_head: nn.Module
    dst_head: nn.Module
    patch_head: nn.Module

    def __init__(
        self,
        *,
        network_def: Sequence[Any],
        img_size: int = 224,
        in_chans: int = 3,
        num_classes: int | None = None,
        distilled: bool = False,
        patch_output: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.network_def = read_network_def(network_def, img_size=img_size)
        _check_outputs(self.network_def, num_classes, distilled=distilled, patch_output=patch_output)
        self.img_size, self.in_chans = img_size, in_chans
        self.num_prefix_tokens = prefix = 2 if distilled else 1
        self.patch_output = patch_output
        self.arguments: dict[str, Any] = {
            **{"img_size": img_size, "in_chans": in_chans, "distilled": distilled, "patch_output": patch_output},
            **{"drop_rate": drop_rate, "drop_path_rate": drop_path_rate},
        }
        self.distilled_training = self.grad_checkpointing = False
        _, self.num_features, classes = self.network_def[-1]
        self.head_hidden_size = self.embed_dim = self.num_features

        entry = self.network_def[0]
        width, patches = entry[1], (img_size // PATCH) ** 2
        self.patch_embed: nn.Module
        if entry[0] == 0:
            self.patch_embed = LinearEmbedding(in_chans, width)
        else:
            self.patch_embed = ConvEmbedding(in_chans, width, mid_of(entry))
        self.tokens = nn.Parameter(torch.zeros(1, prefix, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + prefix, width))
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(_blocks(self.network_def, img_size, prefix, drop_rate, drop_path_rate))
        self.norm = nn.LayerNorm(self.num_features, EPS)
        self.reset_classifier(classes)
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Any:
        """Logits (B, num_classes) of images (B, in_chans, H, W); in training, with a second output, a pair."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C), normalized, the prefix tokens first."""
        x = self.embed(x)
        for block in self.blocks:
            x = self.run(block, x)
        return self.norm(x)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) before the first block.

        Raises:
            SettingError: Images of another size.
        """
        if tuple(x.shape[1:]) != (self.in_chans, self.img_size, self.img_size):
            raise SettingError(
                f"images are {' x '.join(map(str, x.shape[1:]))} and the model takes {self.in_chans} channels of "
                f"{self.img_size} x {self.img_size} pixels: convert them, or build it with in_chans and img_size"
            )
        patches = self.patch_embed(x)
        return self.pos_drop(torch.cat([self.tokens.expand(x.shape[0], -1, -1), patches], dim=1) + self.pos_embed)

    def run(self, block: Any, *inputs: Any) -> Tensor:
        """A block, whose activations are forgotten until the gradient needs them where that is on."""
        return checkpoint(block, *inputs) if self.grad_checkpointing and self.training else block(*inputs)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """The answers to normalized tokens (B, N, C): logits, or the mean prefix token (B, C)."""
        prefix = x[:, : self.num_prefix_tokens]
        if pre_logits:
            return prefix.mean(1)
        logits = self.cls_head(prefix[:, 0])
        if self.num_prefix_tokens == 2:
            others = self.dst_head(prefix[:, 1])
            return (logits, others) if self.training and self.distilled_training else (logits + others) / 2
        if not self.patch_output or not self.training:
            return logits
        patches = x[:, self.num_prefix_tokens :]
        return logits, self.patch_head(patches.mean(1) if self.patch_output == "avg" else patches)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps at the ends of the stages, and, unless `intermediates_only`, what `forward_features` gives.

        Raises:
            SettingError: Another format than NCHW.
        """
        if output_fmt != "NCHW":
            raise SettingError(f"the stages of ViT-ResNAS give maps, output_fmt NCHW: got {output_fmt!r}")
        wanted, _ = feature_take_indices(len(self.feature_info), indices)  # type: ignore[arg-type]
        maps, x, side = [], self.embed(x), self.img_size // PATCH
        for entry, block in zip(self.network_def[1:-1], self.blocks, strict=True):
            if entry[0] == 3:
                maps.append(self._map(x, side))
                side //= 2
            x = self.run(block, x)
        last = self.norm(x)
        maps.append(self._map(last if norm else x, side))
        taken = [maps[index] for index in wanted]
        return taken if intermediates_only else (last, taken)

    def _map(self, x: Tensor, side: int) -> Tensor:
        return x[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, (side, side))

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels and reduction of each stage."""
        ends = [index - 1 for index, entry in enumerate(self.network_def) if entry[0] in (2, 3)]
        widths = [entry[1] for entry in self.network_def if entry[0] in (2, 3)]
        return [
            {"num_chs": width, "reduction": PATCH * 2**stage, "module": f"blocks.{end - 1}" if end else "patch_embed"}
            for stage, (width, end) in enumerate(zip(widths, ends, strict=True))
        ]

    def get_classifier(self) -> Any:
        """The head, or all of them."""
        heads = [getattr(self, name) for name in ("cls_head", "dst_head", "patch_head") if hasattr(self, name)]
        return heads[0] if len(heads) == 1 else tuple(heads)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New heads. The class token is the only pooling there is."""
        if global_pool not in (None, "token"):
            raise SettingError(f"ViT-ResNAS answers by its class token, global_pool 'token': got {global_pool!r}")
        self.num_classes = num_classes
        self.network_def = with_classes(self.network_def, num_classes)
        names = ["cls_head"]
        names += ["dst_head"] if self.num_prefix_tokens == 2 else []
        names += ["patch_head"] if self.patch_output else []
        for name in names:
            head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
            setattr(self, name, head.apply(_initialize))

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether training gives the answers of both tokens, as a distillation needs them."""
        self.distilled_training = enable

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"tokens"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^tokens|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


def _check_outputs(
    network_def: NetworkDef, num_classes: int | None, *, distilled: bool, patch_output: str | None
) -> None:
    if num_classes not in (None, network_def[-1][2]):
        index = len(network_def) - 1
        raise ModelError(f"network_def[{index}] {network_def[-1]}: the head is not for num_classes {num_classes}")
    if patch_output not in (None, *PATCH_OUTPUTS):
        raise ModelError(unknown("patch_output", str(patch_output), PATCH_OUTPUTS))
    if patch_output and distilled:
        raise ModelError("patch_output and distilled are two ways to train a second output: choose one")


def _blocks(network_def: NetworkDef, img_size: int, prefix: int, drop: float, drop_path: float) -> list[nn.Module]:
    depth = sum(entry[0] == 1 for entry in network_def)
    rates = iter(drop_path * place / max(1, depth - 1) for place in range(depth))
    blocks: list[nn.Module] = []
    for entry, side in with_grids(network_def, img_size):
        match entry:
            case (1, (width, heads, head_dim), (_, hidden), exists):
                rate = next(rates)
                block = Block(width, heads, head_dim, hidden, drop=drop, drop_path=rate) if exists else nn.Identity()
                blocks.append(block)
            case (3, taken, given):
                blocks.append(Reduction(taken, given, 2 * side, prefix))
    return blocks


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, ViTResNAS | Reduction):
        for name, parameter in module.named_parameters(recurse=False):
            if name in ("tokens", "pos_embed"):
                trunc_normal_(parameter, std=0.02)


def checkpoint_filter_fn(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The reference's weights, whose names are ours, with position tables for the images of `model`."""
    return resized(state, {name: tensor.shape for name, tensor in model.state_dict().items()})


@dataclass(frozen=True, slots=True)
class Variant:
    """A network with a name."""

    name: str
    summary: str
    network_def: NetworkDef


def _variant(name: str, summary: str = "224 px") -> Variant:
    network_def = PUBLISHED[name]
    widths = "/".join(str(entry[1]) for entry in network_def if entry[0] in (2, 3))
    blocks = sum(entry[0] == 1 for entry in network_def)
    return Variant(
        f"vit_resnas_{name}_224", f"{summary}, {blocks} blocks in 3 stages of {widths} channels", network_def
    )


GENERIC = "vit_resnas"
"""The name of a model of any network_def."""

VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        _variant("reference_tiny", "224 px, made by hand"),
        _variant("tiny"),
        _variant("small"),
        _variant("medium"),
        Variant(GENERIC, "a multi-stage ViT of the network_def and img_size it is given", PUBLISHED["reference_tiny"]),
    )
}


def cfg() -> dict[str, Any]:
    """What timm knows of each of these models."""
    return {
        "input_size": (3, 224, 224),
        "num_classes": 1000,
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.conv1.conv",
        "classifier": "cls_head",
    }


def build(model: type[ViTResNAS], name: str, network_def: NetworkDef, /, **arguments: Any) -> ViTResNAS:
    """A model by its name, as timm builds it; a network_def among the arguments takes the place of its own.

    Raises:
        ModelError: Pretrained weights were asked for, or arguments that describe no model.
    """
    if arguments.pop("pretrained", False):
        raise ModelError(f"{name} has no pretrained weights to fetch: load the authors' with anyvit.load_reference")
    size = arguments.get("img_size", 224)
    if own := arguments.pop("network_def", None):
        network_def = read_network_def(own, img_size=size)
    elif "num_classes" in arguments:
        network_def = with_classes(network_def, arguments["num_classes"])
    whole = {"crop_pct": 1.0} if size <= 112 else {}  # small images have no margin to lose
    asked = arguments.pop("pretrained_cfg_overlay", None) or {}
    return build_model_with_cfg(
        model,
        name,
        False,
        pretrained_cfg_overlay={"input_size": (3, size, size), **whole, **asked},
        **{"network_def": network_def, "num_classes": network_def[-1][2], **arguments, "img_size": size},
    )


default_cfgs = generate_default_cfgs({name: cfg() for name in VARIANTS})


def _register(variant: Variant) -> None:
    def entry(pretrained: bool = False, **arguments: Any) -> ViTResNAS:
        return build(ViTResNAS, variant.name, variant.network_def, pretrained=pretrained, **arguments)

    entry.__name__ = variant.name
    register_model(entry)


for _each in VARIANTS.values():
    _register(_each)


_WORDS = ("network_def", "img_size", "patch_size", "num_classes", "distill_token", "patch_output")


def from_reference(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> ViTResNAS:
    """The model that weights in the reference's layout belong to. A super-network's are those of its largest network.

    Args:
        weights: Of a network.
        config: The reference's own words. `network_def` is needed; another `img_size` resizes the position tables.

    Raises:
        SettingError: A word that is missing or unknown.
        ModelError: Weights that are not those of the model described.
    """
    words = dict(config or {})
    for word in words:
        if word not in _WORDS:
            raise SettingError(f"config: {unknown('word', word, _WORDS)}")
    if "network_def" not in words:
        raise SettingError("the weights do not tell how wide a head is: give network_def in config")
    if words.get("patch_size", PATCH) != PATCH:
        raise ModelError(f"patch_size {words['patch_size']} is not supported: {PATCH} is")
    if not {"tokens", "pos_embed"} <= weights.keys():
        raise ModelError("these are no ViT-ResNAS weights: tokens or pos_embed is not in them")
    tokens, patch_output = weights["tokens"].shape[1], words.get("patch_output")
    patches = weights["pos_embed"].shape[1] - tokens
    model = ViTResNAS(
        network_def=words["network_def"],
        img_size=words.get("img_size", PATCH * round(patches**0.5)),
        num_classes=words.get("num_classes"),
        distilled=words.get("distill_token", tokens == 2),
        patch_output="seq" if patch_output is True else patch_output or None,
    )
    if not model.patch_output and any(name.startswith("patch_head.") for name in weights):
        warnings.warn("the weights' patch_head, which serves training alone, is left out", stacklevel=2)
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("patch_head.")}
    try:
        model.load_state_dict(checkpoint_filter_fn(weights, model))
    except RuntimeError as error:
        raise ModelError(f"these weights are not those of the model described: {error}") from None
    return model
