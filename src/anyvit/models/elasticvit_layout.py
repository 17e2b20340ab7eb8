"""The layout of super-networks that ElasticViT's authors publish (microsoft/Moonlit), under our names, and their words.

Attention and MLP are layers of their own there, one after the other; "exactor" and "classifer" are spelled as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from anyvit.errors import SettingError, unknown
from anyvit.models.elasticvit_space import Space, Stage

_Rule = str | Callable[[re.Match[str]], str]


def _block(match: re.Match[str]) -> str:
    """Of layer 2j and 2j + 1, block j; the norm of the second is the block's second."""
    layer = int(match[2])
    inner = match[3].replace("norm1", f"norm{1 + layer % 2}")
    return f"stages.{match[1]}.blocks.{layer // 2}.{inner}"


_RULES: tuple[tuple[str, _Rule], ...] = (
    (r"^first_conv_bn", "stem.norm"),
    (r"^first_conv", "stem.conv"),
    (r"^conv_stem\.layers\.(\d+)\.0", r"stem.stage.blocks.\1"),
    (r"^feature_exactor\.(\d+)\.layers\.(\d+)\.0\.", r"stages.\1.blocks.\2."),
    (r"^feature_exactor\.(\d+)\.layers\.0\.reduction", r"stages.\1.reduction"),
    (r"^feature_exactor\.(\d+)\.layers\.(\d+)\.(norm1|qkv|proj|dw_v_conv|attention_bias|fc1|fc2)", _block),
    (r"\.(qkv|proj)\.(?=weight|bias)", r".attn.\1."),
    (r"\.dw_v_conv", ".attn.values"),
    (r"\.attention_bias", ".attn.position.table"),
    (r"\.pw_conv", ".expand"),
    (r"\.pw_bn", ".expand_norm"),
    (r"\.dw_conv", ".depthwise"),
    (r"\.dw_bn", ".depthwise_norm"),
    (r"\.se_conv1", ".squeeze"),
    (r"\.se_conv2", ".excite"),
    (r"\.pwl_conv", ".project"),
    (r"\.pwl_bn", ".project_norm"),
    (r"\.shortcut_conv", ".shortcut"),
    (r"^pre_head_0", "head_expand"),
    (r"^pre_head_norm_0", "head_norm"),
    (r"^pre_head_1", "head_hidden"),
    (r"^classifer", "classifier"),
)
"""From the reference's names to ours, one after the other."""


def checkpoint_filter_fn(state: Mapping[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """The reference's weights under our names. Our own weights are left as they are."""
    found = {}
    for name, tensor in state.items():
        if name.endswith("relative_position_index"):
            continue  # it follows from the size of the grid
        if name.startswith(("first_conv", "conv_stem", "feature_exactor", "pre_head", "classifer")):
            for pattern, ours in _RULES:
                name = re.sub(pattern, ours, name)
        found[name] = tensor
    return found


_NEEDED = (
    *("stage", "max_channels", "min_channels", "max_depth", "min_depth", "downsampling", "se", "res", "head_dims"),
    *("classifer_head_dim", "classifier_mul", "conv_ratio", "mlp_ratio", "v_scale", "stem_channels", "stem_depths"),
)
_ONLY: Mapping[str, Any] = {"qk_scale": [1], "pre_norm": True, "norm": "LN", "act": "hardswish"}
_KERNELS = (3, 5)
_CONV_STEP = 8


def space_of(config: Mapping[str, Any]) -> Space:
    """The space that the reference's words describe.

    Raises:
        SettingError: A word that is missing or unknown, or that asks for what is not here.
    """
    known = (*_NEEDED, *_ONLY, "num_classes")
    for word, value in config.items():
        if word not in known:
            raise SettingError(f"config: {unknown('word', word, known)}")
        if word in _ONLY and value != _ONLY[word]:
            raise SettingError(f"{word} {value!r} is not supported: {_ONLY[word]!r} is")
    if missing := [word for word in _NEEDED if word not in config]:
        raise SettingError(f"the weights' shapes do not tell {', '.join(missing)}: give them in config")
    c = config
    stages = [Stage("conv", 1, False, _rising(c["stem_channels"]), _rising(c["stem_depths"]), (1,), _KERNELS)]
    by_stage = ("stage", "downsampling", "se", "min_channels", "max_channels", "min_depth", "max_depth")
    for kind, halves, squeeze, narrowest, widest, least, most in zip(*(c[word] for word in by_stage), strict=True):
        is_conv = kind == "C"
        stages.append(
            Stage(
                kind="conv" if is_conv else "attention",
                stride=2 if halves else 1,
                squeeze=squeeze if is_conv else True,
                channels=tuple(range(narrowest, widest + 1, _CONV_STEP if is_conv else c["head_dims"])),
                depths=tuple(range(least, most + 1)),
                ratios=_rising(c["conv_ratio"] if is_conv else c["mlp_ratio"]),
                sizes=_KERNELS if is_conv else _rising(c["v_scale"]),
            )
        )
    return Space(_rising(c["res"]), tuple(stages), c["head_dims"], c["classifier_mul"], c["classifer_head_dim"][-1])


def _rising(values: list[int]) -> tuple[int, ...]:
    return tuple(sorted(values))
