"""A small model over several scales of an image in the place of a larger model (Scaling on Scales, S2).

Paper:    Shi, Wu, Mao, Wang, Darrell, *When Do We Not Need Larger Vision Models?*, ECCV 2024, arXiv 2403.13043
Differs:  pooled and classified too, as timm's models are; one model may have a classifier for its first scale, another
          for its first two, and so on, so that the scales that run can be chosen after training (ours)
Letters:  B images of side S, m scales, c features of the backbone, K classes
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.contract import share
from anyvit.models.layers.scales import joined, multi_scale, sizes_of, tiles_of

CONTRACT = ("forward_features", "forward_head", "get_classifier", "num_features", "head_hidden_size")
"""What of timm's contract a backbone must have."""


class MultiScale(nn.Module):
    """A backbone that sees each image at several scales; a linear classifier takes the features of all of them.

    A classifier starts as that of the backbone on the first scale, and with zeros for the others: where the first scale
    is 1, the model answers as the backbone did until it is trained. What is frozen of the backbone before (all of it,
    as in the paper, by `requires_grad_(False)`) stays as it is.

    Args:
        backbone: A model of timm's contract whose features are a square grid of tokens, or maps. Its modules are
            copied, its tensors are shared.
        scales: Sizes as multiples of the image's; the first gives the grid.
        tile: The side of the tiles that the backbone takes. None: that of the images.
        max_batch: The most tiles that the backbone is given at once. None: all of a scale.
        trained_for: How many of the scales, the first ones, can answer alone; the last of these numbers is that of all
            scales. Each has a classifier, and in training each batch draws one of them. None: all together only.

    Raises:
        ModelError: The backbone is none that can be wrapped; the message says why.
        SettingError: `trained_for` are no such numbers.
    """

    def __init__(
        self,
        backbone: nn.Module,
        scales: Sequence[float] = (1, 2),
        *,
        tile: int | None = None,
        max_batch: int | None = None,
        trained_for: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if reason := why_not_multi_scale(backbone):
            raise ModelError(f"{type(backbone).__name__} cannot see several scales: {reason}")
        self.scales = tuple(scales)
        self.tile = tile
        self.max_batch = max_batch
        self.trained_for = _checked_numbers(trained_for, len(self.scales))
        self.backbone: Any = share(backbone)
        self.classifier_path, classifier = _take_classifier(self.backbone)
        self.num_classes = getattr(classifier, "out_features", 0)
        self.num_prefix_tokens = getattr(backbone, "num_prefix_tokens", 0)
        self._channels_last = getattr(backbone, "output_fmt", None) == "NHWC"
        self.pretrained_cfg = self.default_cfg = getattr(backbone, "pretrained_cfg", {})
        self.heads = nn.ModuleDict({str(first): _widened(classifier, first) for first in self.trained_for})
        self.train(backbone.training)

    @property
    def num_features(self) -> int:
        return self.backbone.num_features * len(self.scales)

    @property
    def head_hidden_size(self) -> int:
        return self.backbone.head_hidden_size * len(self.scales)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        return [{**info, "num_chs": info["num_chs"] * len(self.scales)} for info in self.backbone.feature_info]

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Logits (B, K).

        Args:
            x: Images (B, C, S, S).
            first: How many of the scales run, one of `trained_for`. None: all; in training, drawn for each batch.

        Raises:
            SettingError: There is no classifier for so many, or the images cannot be cut into tiles of the backbone's
                size.
        """
        if first is None and self.training and len(self.trained_for) > 1:
            first = self.trained_for[int(torch.randint(len(self.trained_for), ()))]
        return self.forward_head(self.forward_features(x, first))

    def forward_features(self, x: Tensor, first: int | None = None) -> Tensor:
        """Features in the backbone's layout, m * c of them; those of the first scale come first."""
        features = multi_scale(
            self._features,
            x,
            self.scales[: self._checked(first)],
            tile=self.tile,
            num_prefix_tokens=self.num_prefix_tokens,
            max_batch=self.max_batch,
        )
        return self._last(features)

    def _features(self, tiles: Tensor) -> Tensor:
        return self._first(self.backbone.forward_features(tiles))

    def _first(self, maps: Tensor) -> Tensor:
        """Maps of a backbone that has its channels last, with channels first; tokens as they are."""
        return maps.permute(0, 3, 1, 2) if self._channels_last else maps

    def _last(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1) if self._channels_last else maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Each scale is pooled as the backbone does it."""
        channels = 1 if x.ndim == 4 and not self._channels_last else -1
        parts = x.split(self.backbone.num_features, dim=channels)
        pooled = torch.cat([self.backbone.forward_head(part, pre_logits=True) for part in parts], dim=1)
        return pooled if pre_logits else self.heads[str(len(parts))](pooled)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps (B, m * c, h, h) of the layers that `indices` choose: arguments and result are timm's."""
        if output_fmt != "NCHW":
            raise SettingError(f"several scales come together as maps, output_fmt 'NCHW': got {output_fmt!r}")
        sizes = sizes_of(x, self.scales, tile=self.tile)
        wanted = {"indices": indices, "norm": norm, "stop_early": stop_early}
        seen = [self._intermediates(tiles_of(x, size), wanted) for size in sizes]
        levels = [joined(level, sizes) for level in zip(*(maps for _, maps in seen), strict=True)]
        if intermediates_only:
            return levels
        last = joined([features for features, _ in seen], sizes, num_prefix_tokens=self.num_prefix_tokens)
        return self._last(last), levels

    def _intermediates(self, tiles: Tensor, wanted: Mapping[str, Any]) -> tuple[Tensor, list[Tensor]]:
        chunks = tiles.split(self.max_batch or len(tiles))
        seen = [self.backbone.forward_intermediates(chunk, **wanted) for chunk in chunks]
        levels = [torch.cat(level) for level in zip(*(maps for _, maps in seen), strict=True)]
        return self._first(torch.cat([features for features, _ in seen])), levels

    def subnetwork(self, first: int) -> MultiScale:
        """The model of the first scales alone, with their classifier; its tensors are those of this model."""
        first = self._checked(first)
        twin = share(self)
        twin.scales = twin.scales[:first]
        twin.trained_for = (first,)
        twin.heads = nn.ModuleDict({str(first): twin.heads[str(first)]})
        return twin

    def _checked(self, first: int | None) -> int:
        first = len(self.scales) if first is None else first
        if first not in self.trained_for:
            raise SettingError(f"how many scales run must be one of {list(self.trained_for)}: got {first!r}")
        return first

    def train(self, mode: bool = True) -> MultiScale:
        """A backbone that does not learn stays in evaluation: no dropout, and BatchNorm takes no tile for an image."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def get_classifier(self) -> Any:
        """The classifier; where there are several, all of them, as timm's models with two have it."""
        heads = tuple(self.heads.values())
        return heads[0] if len(heads) == 1 else heads

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None:
            self.backbone.reset_classifier(0, global_pool)
        self.num_classes = num_classes
        width = self.backbone.head_hidden_size
        like = next(self.backbone.parameters())
        for first in self.trained_for:
            new = nn.Linear(first * width, num_classes) if num_classes else nn.Identity()
            self.heads[str(first)] = new.to(like.device, like.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        names = self.backbone.no_weight_decay() if hasattr(self.backbone, "no_weight_decay") else ()
        return {f"backbone.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        matcher = self.backbone.group_matcher(coarse=coarse)
        stem, blocks = matcher["stem"], matcher["blocks"]
        if isinstance(blocks, str):
            return {"stem": _inside(stem), "blocks": _inside(blocks)}
        return {"stem": _inside(stem), "blocks": [(_inside(pattern), order) for pattern, order in blocks]}


def _inside(pattern: str) -> str:
    """The names that `pattern` matches, as those of a backbone."""
    return pattern.replace("^", r"^backbone\.")


def _take_classifier(model: Any) -> tuple[str, nn.Module]:
    """Where `model` had its classifier, and what it was; from now on the model passes through what it is given."""
    classifier = model.get_classifier()
    path = next(path for path, module in model.named_modules() if module is classifier)
    model.set_submodule(path, nn.Identity())
    return path, classifier


def _widened(classifier: nn.Module, first: int) -> nn.Module:
    """A classifier of the features of so many scales that answers by those of the first one."""
    if not isinstance(classifier, nn.Linear):
        return nn.Identity()
    wide = copy.deepcopy(classifier).requires_grad_(True)
    wide.in_features = first * classifier.in_features
    wide.weight = nn.Parameter(_padded(classifier.weight.detach(), wide.in_features))
    return wide


def _padded(weight: Tensor, columns: int) -> Tensor:
    return nn.functional.pad(weight, (0, columns - weight.shape[1]))


def _checked_numbers(numbers: Sequence[int] | None, scales: int) -> tuple[int, ...]:
    numbers = (scales,) if numbers is None else tuple(numbers)
    if not scales:
        raise SettingError("give scales, such as (1, 2): there are none")
    if list(numbers) != sorted(set(numbers)) or not numbers or numbers[0] < 1 or numbers[-1] != scales:
        raise SettingError(f"trained_for must be rising numbers of scales that end with all {scales}: got {numbers}")
    return numbers


def why_not_multi_scale(model: nn.Module) -> str | None:
    """The reason why MultiScale cannot wrap `model`, or None. A copy without memory answers one image to find out."""
    name = type(model).__name__
    missing = [part for part in CONTRACT if not hasattr(model, part)]
    if missing:
        return f"a {name} has no {missing[0]}, as timm's models have"
    classifier = cast(Any, model).get_classifier()
    if not isinstance(classifier, nn.Linear | nn.Identity):
        return f"the classifier of a {name} is a {type(classifier).__name__}, not one linear layer"
    try:
        features = _features_of(model)
    except Exception as error:  # whatever a model raises is the reason
        return f"a {name} does not answer an image of {_side(model)} pixels: {' '.join(str(error).split())}"
    if features.ndim == 4:
        return None
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if features.ndim != 3 or grid is None:
        return f"the features of a {name} are neither maps nor a grid of tokens: {tuple(features.shape)}"
    patches = features.shape[1] - getattr(model, "num_prefix_tokens", 0)
    if patches != grid[0] * grid[1]:
        return f"a {name} gives {patches} of its {grid[0]} x {grid[1]} tokens: several scales need the whole grid"
    return None


def _features_of(model: nn.Module) -> Tensor:
    """What `forward_features` gives of one image, on the meta device."""
    memo: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    twin: Any = copy.deepcopy(model, memo).eval()
    filters = next((p for p in twin.parameters() if p.ndim == 4), torch.empty(0, 3, 1, 1, device="meta"))
    side = _side(model)
    return twin.forward_features(filters.new_empty(1, filters.shape[1], side, side))


def _side(model: Any) -> int:
    """The side of the images that a model of timm takes."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return size[0] if size else getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]


def checkpoint_filter_fn(weights: Mapping[str, Tensor], model: MultiScale) -> dict[str, Tensor]:
    """Weights of a model of the backbone's kind as those of `model`, whose classifiers start as if made of it."""
    if any(name.startswith("backbone.") for name in weights):
        return dict(weights)
    family = sys.modules[type(model.backbone).__module__]
    if hasattr(family, "checkpoint_filter_fn"):
        weights = family.checkpoint_filter_fn(dict(weights), model.backbone)
    found = {}
    for name, tensor in weights.items():
        path, _, leaf = name.rpartition(".")
        if path != model.classifier_path:
            found[f"backbone.{name}"] = tensor
            continue
        for first in model.trained_for:
            wide = _padded(tensor, first * model.backbone.head_hidden_size) if tensor.ndim == 2 else tensor.clone()
            found[f"heads.{first}.{leaf}"] = wide
    return found
