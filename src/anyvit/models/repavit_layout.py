"""The layout of weights that RePaViT's authors publish (Ackesnal/RePaViT), under our names, and what shapes tell.

In a merged MLP the reference uses the names of the trained one with other meanings: fc1 is the linear path with the
residual's identity in it, fc2 leads to the active units, fc3 back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.models import swin_transformer, vision_transformer
from timm.models.metaformer import MetaFormer
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError, unknown

_FIRST_BLOCK = {
    "vit": "blocks.0.attn.qkv.weight",
    "swin": "layers.0.blocks.0.attn.qkv.weight",
    "poolformer": "network.0.0.norm1.weight",
}
_POOLFORMER = (
    (r"^network\.(\d*[02468])\.(\d+)", lambda place: f"stages.{int(place[1]) // 2}.blocks.{place[2]}"),
    (r"^network\.(\d*[13579])\.proj", lambda place: f"stages.{int(place[1]) // 2 + 1}.downsample.conv"),
    (r"layer_scale_1$", "layer_scale1.scale"),
    (r"\.mlp\.ls$", ".mlp.ls.scale"),
    (r"^patch_embed\.proj", "stem.conv"),
    (r"^head\.(?=weight|bias)", "head.fc."),
)
_MERGED = {"fc1": "linear", "fc2": "fc1", "fc3": "fc2"}

_SHARED_WORDS = ("in_chans", "num_classes", "idle_ratio", "channel_idle", "feature_norm")
_WORDS: Mapping[str, tuple[str, ...]] = {
    "vit": (
        *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "pre_norm", "fc_norm"),
        *("heuristic", "drop_path_rate"),
    ),
    "swin": (
        *("img_size", "patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias"),
        *("drop_path_rate",),
    ),
    "poolformer": ("layers", "embed_dims", "mlp_ratios", "downsamples", "pool_size", "use_layer_scale"),
}
_OURS = {"heuristic": "schedule", "layers": "depths", "embed_dims": "dims"}


def kind_of(weights: Mapping[str, Tensor]) -> str:
    """ "vit", "swin" or "poolformer".

    Raises:
        ModelError: None of them.
    """
    kind = next((kind for kind, name in _FIRST_BLOCK.items() if name in weights), None)
    if kind is None:
        raise ModelError(f"these are no RePaViT weights: none of {', '.join(_FIRST_BLOCK.values())} is in them")
    return kind


def active_of_merged(weights: Mapping[str, Tensor]) -> list[int]:
    """The number of active units of each block, in order, where the weights are merged; empty where they are not."""
    merged = _merged_mlps(weights)
    active = (weights.get(f"{mlp}.fc2.weight") for mlp in sorted(merged, key=_place))
    return [0 if units is None else len(units) for units in active]


def _merged_mlps(weights: Iterable[str]) -> set[str]:
    names = set(weights)
    mlps = {match[1] for name in names if (match := re.match(r"(.*\.mlp)\.fc1\.weight$", name))}
    ours = {mlp for mlp in mlps if f"{mlp}.linear.weight" in names}
    return {mlp for mlp in mlps - ours if f"{mlp}.fc3.weight" in names or f"{mlp}.fc2.weight" not in names}


def _place(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def checkpoint_filter_fn(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The reference's weights under our names, tables and patches resized to `model`. Ours are left as they are."""
    merged = _merged_mlps(state)
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        mlp, _, rest = name.partition(".mlp.")
        if f"{mlp}.mlp" in merged:
            leaf = rest.partition(".")[0]
            name = name.replace(f".mlp.{leaf}.", f".mlp.{_MERGED[leaf]}.")
            if leaf == "fc1" and tensor.ndim > 1:
                tensor = tensor - torch.eye(len(tensor), dtype=tensor.dtype).reshape(tensor.shape)
        name = name.replace(".mlp.norm.", ".mlp.norm1.").replace(".attn.norm.", ".norm1.")
        found[name] = tensor
    if isinstance(model, MetaFormer):
        return {_poolformer_name(name): tensor for name, tensor in found.items()}
    family = swin_transformer if isinstance(model, SwinTransformer) else vision_transformer
    return family.checkpoint_filter_fn(found, model)


def _poolformer_name(name: str) -> str:
    for pattern, ours in _POOLFORMER:
        name = re.sub(pattern, ours, name)
    return name


def arguments_of(kind: str, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Our constructor arguments, from the reference's words and, for those left out, from the shapes.

    Raises:
        SettingError: A word that is unknown, or missing and not to be read off.
    """
    known = (*_SHARED_WORDS, *_WORDS[kind])
    for word in config:
        if word not in known:
            raise SettingError(f"config: {unknown('word', word, known)}")
    words = dict(config)
    norm = words.pop("feature_norm", "BatchNorm")
    if norm not in ("BatchNorm", "LayerNorm") or (kind == "poolformer" and norm == "LayerNorm"):
        raise SettingError(f"feature_norm {norm!r} is not supported for a {kind}: BatchNorm is")
    if not words.pop("channel_idle", True):
        words["idle_ratio"], norm = 0.0, "LayerNorm"  # as the reference has it, whatever feature_norm says
    if kind != "poolformer":
        words["feature_norm"] = "layer" if norm == "LayerNorm" else "batch"
    elif words.pop("use_layer_scale", True) is False:
        words["layer_scale_init_values"] = None
    for word, only in (("mlp_ratios", 4), ("downsamples", True)):
        if any(value != only for value in words.pop(word, ())):
            raise SettingError(f"{word} {config[word]} are not supported: timm's PoolFormer has {only} everywhere")
    told = {"vit": _vit, "swin": _swin, "poolformer": _poolformer}[kind](weights)
    arguments = {**told, **{_OURS.get(word, word): value for word, value in words.items()}}
    if missing := [name for name, value in arguments.items() if value is None and name in told]:
        raise SettingError(f"the weights' shapes do not tell {', '.join(missing)}: give it in config")
    return arguments


def _vit(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    width, in_chans, patch, _ = weights["patch_embed.proj.weight"].shape
    return {
        "img_size": math.isqrt(weights["pos_embed"].shape[1] - 1) * patch,
        "patch_size": patch,
        "in_chans": in_chans,
        "num_classes": _classes(weights),
        "embed_dim": width,
        "depth": _count(weights, r"blocks\.(\d+)"),
        "num_heads": width // 64 if width % 64 == 0 else None,
        "mlp_ratio": _mlp_ratio(weights, "blocks.0", width),
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
    }


def _swin(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    width, in_chans, patch, _ = weights["patch_embed.proj.weight"].shape
    stages = range(_count(weights, r"layers\.(\d+)"))
    tables = [weights[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in stages]
    window = (math.isqrt(len(tables[0])) + 1) // 2
    mask = weights.get("layers.0.blocks.1.attn_mask")  # one row for each window of the image
    return {
        "img_size": None if mask is None else math.isqrt(len(mask)) * window * patch,
        "patch_size": patch,
        "in_chans": in_chans,
        "num_classes": _classes(weights),
        "embed_dim": width,
        "depths": tuple(_count(weights, rf"layers\.{stage}\.blocks\.(\d+)") for stage in stages),
        "num_heads": tuple(table.shape[1] for table in tables),
        "window_size": window,
        "mlp_ratio": _mlp_ratio(weights, "layers.0.blocks.0", width),
    }


def _poolformer(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    stages = range(0, _count(weights, r"network\.(\d+)"), 2)  # between them are those that halve the map
    return {
        "in_chans": weights["patch_embed.proj.weight"].shape[1],
        "num_classes": _classes(weights),
        "dims": tuple(len(weights[f"network.{place}.0.norm1.weight"]) for place in stages),
        "depths": tuple(_count(weights, rf"network\.{place}\.(\d+)") for place in stages),
    }


def _classes(weights: Mapping[str, Tensor]) -> int:
    return len(weights["head.bias"]) if "head.bias" in weights else 0


def _count(weights: Iterable[str], pattern: str) -> int:
    return 1 + max(int(match[1]) for name in weights if (match := re.match(pattern, name)))


def _mlp_ratio(weights: Mapping[str, Tensor], block: str, width: int) -> float:
    """A merged MLP has forgotten it, and needs it no more."""
    return 4.0 if f"{block}.mlp" in _merged_mlps(weights) else len(weights[f"{block}.mlp.fc1.weight"]) / width
