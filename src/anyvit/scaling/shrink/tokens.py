"""Fewer tokens from block to block (EViT, arXiv 2202.07800; ToMe, arXiv 2210.09461). No images, no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anyvit.errors import SettingError
from anyvit.models.contract import share
from anyvit.models.hydravit import HydraViT
from anyvit.models.layers.evit import evit, why_not_evit
from anyvit.models.layers.token_reduction import ReducedViT, why_not_reducible
from anyvit.models.layers.tome import tome
from anyvit.protocols import UNCHANGED, Setting, Stage
from anyvit.scaling.shrink.base import BaseLever

METHODS: Mapping[str, Callable[..., ReducedViT]] = {"evit": evit, "tome": tome}

KEEP_RATES = (0.9, 0.7, 0.5)
MERGED = (0.4, 0.8)
"""Shares of the patch tokens that ToMe merges, over all blocks: in DeiT-Small 7 and 13 in each."""


class TokenReduction(BaseLever):
    """The setting is `{"method": "evit", "keep_rate": 0.7}` or `{"method": "tome", "r": 13}`.

    More words are the arguments of `evit` (at, fuse) and `tome` (inflect, proportional).
    """

    name, stage = "tokens", Stage.TOKENS

    def why_not(self, model: nn.Module) -> str | None:
        return why_not_reducible(_plain(model))

    def settings(self, model: nn.Module) -> Sequence[Setting]:
        """Those that leave fewer tokens than there are, by how many; EViT where there is a class token for it."""
        plain = _plain(model)
        if why_not_reducible(plain):
            return [UNCHANGED]
        assert isinstance(plain, VisionTransformer)
        patches, depth = plain.patch_embed.num_patches, len(plain.blocks)
        keep = [] if why_not_evit(plain) else [{"method": "evit", "keep_rate": rate} for rate in KEEP_RATES]
        merge = [{"method": "tome", "r": round(share * patches / depth)} for share in MERGED]
        tokens = {str(setting): sum(_reduced(plain, setting).token_counts()) for setting in keep + merge}
        fewer = [setting for setting in keep + merge if tokens[str(setting)] < patches * depth]
        return [UNCHANGED, *sorted(fewer, key=lambda setting: -tokens[str(setting)])]

    def apply(self, model: nn.Module, setting: Setting, *, images: Tensor | None = None) -> nn.Module:
        """The model with reducers in its blocks, over the same weights."""
        return _reduced(_plain(model), setting) if setting else share(model)


def _reduced(model: nn.Module, setting: Setting) -> ReducedViT:
    arguments: dict[str, Any] = dict(setting)
    method = METHODS.get(arguments.pop("method", None))
    if method is None:
        raise SettingError(
            f"the tokens lever is set by a method, {' or '.join(METHODS)}, and its words: got {dict(setting)}"
        )
    try:
        signature(method).bind(model, **arguments)
    except TypeError as error:
        raise SettingError(f"the tokens lever, {setting['method']}: {error}") from None
    return method(model, **arguments)


def _plain(model: nn.Module) -> nn.Module:
    """An elastic model as the ViT of all its heads."""
    return model.subnetwork(model.num_heads) if isinstance(model, HydraViT) else model
