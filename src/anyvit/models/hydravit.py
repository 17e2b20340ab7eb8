"""HydraViT: one ViT, a subnetwork for every number of heads.

Paper:    Haberer, Hojjat, Landsiedel, NeurIPS 2024, arXiv 2409.17978
Weights:  ds-kiel/HydraViT, Zenodo record 14300201; the layout is that of timm's deit_base_patch16_224
Differs:  built on timm's VisionTransformer, so that norms on queries and keys, pooling by average, registers, gradient
          checkpointing and images of any size work too; how many heads run is an argument, not a state of the module
Letters:  k heads that run, H num_heads, p = k * head_dim
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError, unknown
from anyvit.models.contract import blocks_of, share
from anyvit.models.layers.importance import ordered_by_importance
from anyvit.models.layers.sliceable import Cut, Differentiable, Prefix, cut_to_views, extracted, why_not_sliceable

INITS = {"reference": "reset", "timm": ""}  # by our names, timm's
ORDERS = ("given", "importance")


class HydraViT(VisionTransformer):
    """A ViT whose first k heads, with the first k * head_dim channels of everything else, are a ViT of their own.

    Full size is timm's VisionTransformer to the bit, with the same keys in its state dict.

    Args:
        elastic_heads: The numbers of heads it is trained for; the last is num_heads. None: a quarter of the heads up.
        separate_classifiers: Each of them has a classifier of its own, `heads.{k}`, instead of a share in one.
        init: "reference": linear layers and patch embedding as PyTorch makes them, with which narrow models learn
            sooner; or "timm".
        arguments: Those of timm's VisionTransformer.

    Raises:
        ModelError: What the arguments describe cannot be cut to a prefix of its heads.
        SettingError: `elastic_heads` are no head counts of this model.
    """

    plain: ClassVar[type[VisionTransformer]] = VisionTransformer
    elastic_heads: tuple[int, ...]
    heads: nn.ModuleDict
    _differentiable: dict[tuple[int, bool], tuple[list[nn.Module], Differentiable]]

    def __init__(
        self,
        *,
        elastic_heads: Sequence[int] | None = None,
        separate_classifiers: bool = False,
        init: str = "reference",
        **arguments: Any,
    ) -> None:
        embed_dim, num_heads = arguments.get("embed_dim", 768), arguments.get("num_heads", 12)
        if num_heads < 1 or embed_dim % num_heads:
            raise ModelError(f"num_heads {num_heads} does not divide embed_dim {embed_dim}")
        if init not in INITS:
            raise SettingError(f"init must be one of {', '.join(INITS)}: got {init!r}")
        super().__init__(**{"weight_init": INITS[init], **arguments})
        self._become_elastic(elastic_heads, separate_classifiers=separate_classifiers)

    def _become_elastic(self, heads: Sequence[int] | None, *, separate_classifiers: bool) -> None:
        reason = why_not_sliceable(self)
        if reason:
            raise ModelError(f"this model cannot be made elastic: {reason}")
        self.elastic_heads = _checked_list(heads, self.num_heads)
        self.heads = nn.ModuleDict()
        self._differentiable = {}
        if separate_classifiers:
            if type(self) is not HydraViT:
                raise ModelError("separate classifiers do not go with a distillation token: it has a classifier too")
            self._separate(self.head)

    def _separate(self, head: nn.Module) -> None:
        """Give each subnetwork a classifier, which starts as what it used of `head`."""
        self.heads = nn.ModuleDict()
        for heads in self.elastic_heads:
            own = copy.deepcopy(head)
            if isinstance(own, nn.Linear):
                own.in_features = heads * self.head_dim
                own.weight = nn.Parameter(own.weight.detach()[:, : own.in_features].clone())
            self.heads[str(heads)] = own
        self.head = nn.Identity()

    @property
    def num_heads(self) -> int:
        return blocks_of(self)[0].attn.num_heads

    @property
    def head_dim(self) -> int:
        return blocks_of(self)[0].attn.head_dim

    @property
    def separate_classifiers(self) -> bool:
        return len(self.heads) > 0

    def forward(self, x: Tensor, heads: int | None = None, **attention: Any) -> Tensor:  # type: ignore[override]
        """Logits (B, K) of the subnetwork with that many heads; None means all of them.

        Gradients are dense: what does not take part gets zeros, so that an optimizer treats it as the reference does.

        Args:
            x: Images (B, C, S, S).
            heads: Any number from 1 to num_heads; with separate classifiers, one of `elastic_heads`.
            attention: What timm's forward takes for its attention, such as attn_mask.

        Raises:
            SettingError: No such subnetwork, or images of another size than the model's.
        """
        self._check_size(x)
        heads = self._checked(self.num_heads if heads is None else heads)
        logits = super().forward(x, **attention) if heads == self.num_heads else self._narrow(heads)(x, **attention)
        others = [p for name, own in self.heads.items() if name != str(heads) for p in own.parameters()]
        return _ZeroGradients.apply(logits, *others) if others else logits

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = super().forward_head(x, pre_logits=pre_logits)  # with separate classifiers, `head` passes x through
        return self.heads[str(self.num_heads)](x) if self.separate_classifiers and not pre_logits else x

    def subnetwork(self, heads: int) -> VisionTransformer:
        """The subnetwork as a plain timm ViT whose parameters are views of this model's.

        It follows changes in place of these weights (training, load_state_dict), and needs next to no memory. Where
        the model is moved or converted, ask again. `extract` before saving: a file of a view holds the whole.
        """
        return self._cut(self._checked(heads))[0]

    def extract(self, heads: int) -> VisionTransformer:
        """The subnetwork as a plain timm ViT in memory of its own, with the same outputs."""
        return extracted(self.subnetwork(heads))

    def prefixes(self, heads: int) -> list[Prefix]:
        """What each block keeps when `heads` run."""
        hidden = [block.mlp.fc1.out_features * heads // self.num_heads for block in blocks_of(self)]
        return [Prefix(heads * self.head_dim, heads, units) for units in hidden]

    def _cut(self, heads: int) -> tuple[VisionTransformer, dict[str, Cut[int]]]:
        twin = share(self)
        if self.separate_classifiers:
            twin.head = twin.heads[str(heads)]  # type: ignore[assignment]
        for name in ("heads", "elastic_heads", "_differentiable"):
            delattr(twin, name)
        twin.__class__ = self.plain  # type: ignore[assignment]
        return twin, cut_to_views(twin, self.prefixes(heads))

    def _narrow(self, heads: int) -> Differentiable:
        key = (heads, torch.is_grad_enabled())  # apart: a checkpointed forward reads its weights again in backward
        parts = list(self.modules())
        if key not in self._differentiable or self._differentiable[key][0] != parts:  # a part was replaced since
            model, found = self._cut(heads)
            narrow = Differentiable(self, model, found, lambda name: self._origin(name, heads))
            self._differentiable[key] = parts, narrow
        return self._differentiable[key][1]

    def _origin(self, name: str, heads: int) -> str:
        own = self.separate_classifiers and name.startswith("head.")
        return name.replace("head.", f"heads.{heads}.") if own else name

    def get_classifier(self) -> nn.Module:
        return self.heads[str(self.num_heads)] if self.separate_classifiers else super().get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        separate = self.separate_classifiers
        super().reset_classifier(num_classes, global_pool)
        if separate:
            self._separate(self.head)

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        super().set_input_size(*args, **kwargs)
        self._differentiable = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_differentiable": {}}  # tensors with a history cannot be copied, nor need they be

    def _checked(self, heads: int) -> int:
        known = self.elastic_heads if self.separate_classifiers else range(1, self.num_heads + 1)
        if isinstance(heads, bool) or not isinstance(heads, Integral):
            raise SettingError(f"heads must be a whole number from {known[0]} to {known[-1]}: got {heads!r}")
        if heads not in known:
            words = f"one of {list(known)}" if self.separate_classifiers else f"from 1 to {self.num_heads}"
            raise SettingError(f"heads must be {words}: got {heads}")
        return int(heads)

    def _check_size(self, x: Tensor) -> None:
        size, wanted = tuple(x.shape[-2:]), self.patch_embed.img_size
        if self.patch_embed.strict_img_size and size != wanted:
            raise SettingError(
                f"images are {size[0]} x {size[1]} pixels and the model takes {wanted[0]} x {wanted[1]}: "
                "resize them, or build the model with dynamic_img_size=True"
            )


class HydraViTDistilled(HydraViT, VisionTransformerDistilled):
    """The same with DeiT's distillation token and its second classifier. Made by `elastic`."""

    plain = VisionTransformerDistilled


class _ZeroGradients(torch.autograd.Function):
    """The identity on the first argument; the others, which took no part, get gradients of zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *others: Tensor) -> Tensor:
        ctx.save_for_backward(*others)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients[0], *(torch.zeros_like(other) for other in ctx.saved_tensors)


def _checked_list(heads: Sequence[int] | None, num_heads: int) -> tuple[int, ...]:
    if heads is None:
        return tuple(range(math.ceil(num_heads / 4), num_heads + 1))
    if not all(isinstance(k, Integral) and not isinstance(k, bool) and 1 <= k <= num_heads for k in heads):
        raise SettingError(f"elastic heads must be whole numbers from 1 to {num_heads}: got {list(heads)}")
    if len(set(heads)) < len(heads):
        raise SettingError(f"elastic heads must not repeat: got {list(heads)}")
    if num_heads not in heads:
        raise SettingError(f"elastic heads must end with all {num_heads} heads, the full model: got {list(heads)}")
    return tuple(sorted(int(k) for k in heads))


def elastic(
    model: nn.Module,
    heads: Sequence[int] | None = None,
    *,
    separate_classifiers: bool = False,
    order: str = "given",
) -> HydraViT:
    """An elastic copy of a plain timm ViT, which answers as before at full size, to the bit.

    Its subnetworks are useful once it is trained for them.

    Args:
        model: A VisionTransformer, DeiT distilled included. It is left as it is.
        heads: The numbers of heads to train for, all heads among them. None: a quarter of the heads up.
        separate_classifiers: A classifier for each; they start as what they used of the one.
        order: "given", or, of a trained model, "importance": what matters most by the weights comes first, so that
            subnetworks start better; the answer at full size is then the same within rounding. To go by images, give
            the model as `anyvit.models.layers.importance.ordered_by_importance` reorders it.

    Raises:
        ModelError: The model cannot be cut to a prefix of its heads; the message names the part.
        SettingError: `heads` are no head counts of this model, or an unknown order.
    """
    if order not in ORDERS:
        raise SettingError(unknown("order", order, ORDERS))
    reason = why_not_elastic(model)
    if reason:
        raise ModelError(f"{type(model).__name__} cannot be made elastic: {reason}")
    assert isinstance(model, VisionTransformer)
    twin = ordered_by_importance(model) if order == "importance" else copy.deepcopy(model)
    twin.__class__ = HydraViTDistilled if isinstance(model, VisionTransformerDistilled) else HydraViT
    assert isinstance(twin, HydraViT)
    twin._become_elastic(heads, separate_classifiers=separate_classifiers)
    return twin


def why_not_elastic(model: nn.Module) -> str | None:
    """The reason why `elastic` refuses `model`, or None."""
    if isinstance(model, HydraViT) and model.separate_classifiers:
        return "it has separate classifiers already; extract a subnetwork first"
    return why_not_sliceable(model)


@dataclass(frozen=True, slots=True)
class Preset:
    """A shape with a name. The elastic heads are all from `smallest` up."""

    name: str
    image_size: int
    patch_size: int
    depth: int
    num_heads: int
    head_dim: int
    smallest: int

    @property
    def summary(self) -> str:
        heads = f"{self.smallest} to {self.num_heads} heads of {self.head_dim} channels"
        return f"{self.image_size} px, patches of {self.patch_size} px, {self.depth} blocks, {heads}"

    @property
    def arguments(self) -> dict[str, Any]:
        """What HydraViT is built with."""
        return {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "embed_dim": self.num_heads * self.head_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "elastic_heads": tuple(range(self.smallest, self.num_heads + 1)),
        }


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("hydravit_tiny_patch2_8", 8, 2, depth=3, num_heads=3, head_dim=16, smallest=1),
        Preset("hydravit_small_patch2_8", 8, 2, depth=4, num_heads=6, head_dim=16, smallest=3),
        Preset("hydravit_base_patch2_8", 8, 2, depth=6, num_heads=12, head_dim=16, smallest=4),
        Preset("hydravit_tiny_patch4_32", 32, 4, depth=6, num_heads=3, head_dim=32, smallest=1),
        Preset("hydravit_small_patch4_32", 32, 4, depth=6, num_heads=6, head_dim=32, smallest=2),
        Preset("hydravit_base_patch4_32", 32, 4, depth=9, num_heads=12, head_dim=32, smallest=4),
        Preset("hydravit_tiny_patch8_64", 64, 8, depth=6, num_heads=3, head_dim=32, smallest=1),
        Preset("hydravit_small_patch8_64", 64, 8, depth=8, num_heads=6, head_dim=32, smallest=2),
        Preset("hydravit_base_patch8_64", 64, 8, depth=12, num_heads=12, head_dim=32, smallest=4),
        Preset("hydravit_tiny_patch8_96", 96, 8, depth=6, num_heads=3, head_dim=32, smallest=1),
        Preset("hydravit_small_patch8_96", 96, 8, depth=8, num_heads=6, head_dim=32, smallest=2),
        Preset("hydravit_base_patch8_96", 96, 8, depth=12, num_heads=12, head_dim=32, smallest=4),
        Preset("hydravit_tiny_patch16_224", 224, 16, depth=12, num_heads=3, head_dim=64, smallest=1),
        Preset("hydravit_small_patch16_224", 224, 16, depth=12, num_heads=6, head_dim=64, smallest=2),
        Preset("hydravit_base_patch16_224", 224, 16, depth=12, num_heads=12, head_dim=64, smallest=3),
    )
}
PUBLISHED = Preset("hydravit_dyn_patch16_224", 224, 16, depth=12, num_heads=12, head_dim=64, smallest=3)

default_cfgs = generate_default_cfgs(
    {
        preset.name: {
            "input_size": (3, preset.image_size, preset.image_size),
            "num_classes": 1000,
            "pool_size": None,
            "crop_pct": 0.9 if preset.image_size == 224 else 1.0,
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for preset in (*PRESETS.values(), PUBLISHED)
    }
)


def _build(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> HydraViT:
    return build_model_with_cfg(
        HydraViT,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **arguments,
    )


def _register(preset: Preset) -> None:
    def build(pretrained: bool = False, **arguments: Any) -> HydraViT:
        return _build(preset.name, pretrained, {**preset.arguments, **arguments})

    build.__name__ = preset.name
    register_model(build)


for _preset in PRESETS.values():
    _register(_preset)


@register_model
def hydravit_dyn_patch16_224(pretrained: bool = False, dim: int = 768, **arguments: Any) -> HydraViT:
    """The reference's own name and argument: heads of 64 channels, `dim` channels in all."""
    head_dim = PUBLISHED.head_dim
    if dim < head_dim or dim % head_dim:
        raise ModelError(f"dim must be a multiple of head_dim {head_dim}, such as 192, 384 or 768: got {dim}")
    shape = {**PUBLISHED.arguments, "embed_dim": dim, "num_heads": dim // head_dim, "elastic_heads": None}
    return _build(PUBLISHED.name, pretrained, {**shape, **arguments})


def from_reference(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> HydraViT:
    """The model that published weights belong to.

    Args:
        weights: In the layout of timm's VisionTransformer.
        config: What the weights' shapes do not tell, and what shall differ from it: the arguments of HydraViT, and the
            reference's `dim` and `head_dim`. None: heads of 64 channels, as in every published model.

    Raises:
        ModelError: Weights that are not a plain ViT's, or that contradict `config`.
        SettingError: An unknown name in `config`.
    """
    arguments = {**_shape_of(weights), **(config or {})}
    head_dim = arguments.pop("head_dim", PUBLISHED.head_dim)
    arguments["embed_dim"] = arguments.pop("dim", arguments["embed_dim"])
    if "num_heads" not in arguments:
        if arguments["embed_dim"] % head_dim:
            raise ModelError(
                f"embed_dim {arguments['embed_dim']} is no multiple of head_dim {head_dim}: give num_heads"
            )
        arguments["num_heads"] = arguments["embed_dim"] // head_dim
    if arguments["img_size"] is None:
        raise ModelError(f"a position table of {weights['pos_embed'].shape[1]} rows is no square grid: give img_size")
    try:
        model = HydraViT(**arguments)
    except TypeError as error:
        raise SettingError(f"config: {error}") from None
    known = model.state_dict()
    weights = checkpoint_filter_fn(dict(weights), model)
    if not model.num_classes:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    wrong = sorted(known.keys() ^ weights.keys()) or [key for key in known if known[key].shape != weights[key].shape]
    if wrong:
        raise ModelError(f"these weights are not those of the model described: {', '.join(wrong[:3])} …")
    model.load_state_dict(weights)
    return model


def _shape_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        patch, positions = weights["patch_embed.proj.weight"], weights["pos_embed"]
        hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as missing:
        raise ModelError(f"these are not the weights of a plain ViT: {missing} is missing") from None
    embed_dim, in_chans, height, width = patch.shape
    rows = positions.shape[1]  # a square grid, and one for the class token
    side = math.isqrt(rows)
    return {
        "img_size": (side * height, side * width) if rows - side * side in (0, 1) else None,
        "patch_size": (height, width),
        "in_chans": in_chans,
        "num_classes": weights["head.weight"].shape[0] if "head.weight" in weights else 0,
        "embed_dim": embed_dim,
        "depth": 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        "mlp_ratio": hidden / embed_dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "init_values": 1.0 if "blocks.0.ls1.gamma" in weights else None,
        "no_embed_class": side * side == rows,
    }
