"""Fewer heads, and the same share of all channels (HydraViT, arXiv 2409.17978). Needs elastic training, once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.hydravit import HydraViT, elastic, why_not_elastic
from anyvit.protocols import UNCHANGED, Needs, Setting, Stage
from anyvit.scaling.shrink.base import BaseLever


class StackedHeads(BaseLever):
    """The setting is `{"heads": k}`: the subnetwork of the first k heads."""

    name, stage = "heads", Stage.SHAPE

    def needs(self, setting: Setting) -> Needs:
        return Needs.TRAINING if setting else Needs.NOTHING

    def why_not(self, model: nn.Module) -> str | None:
        return None if isinstance(model, HydraViT) else why_not_elastic(model)

    def before_training(self, model: nn.Module, setting: Setting) -> HydraViT:
        """The elastic form of `model`; with `{"heads": k}` for all numbers of heads from k up."""
        if isinstance(model, HydraViT):
            return model
        full = elastic(model)
        return elastic(model, range(_heads(setting), full.num_heads + 1)) if setting else full

    def settings(self, model: nn.Module) -> Sequence[Setting]:
        """Those that `model` is trained for; only UNCHANGED where it is not elastic."""
        smaller = model.elastic_heads[-2::-1] if isinstance(model, HydraViT) else ()
        return [UNCHANGED, *({"heads": heads} for heads in smaller)]

    def apply(self, model: nn.Module, setting: Setting, *, images: Tensor | None = None) -> nn.Module:
        """The subnetwork, as a plain ViT of views into the weights of `model`."""
        if isinstance(model, HydraViT):
            return model.subnetwork(_heads(setting) if setting else model.num_heads)
        if setting:
            raise ModelError(
                f"{type(model).__name__} is not elastic: make it so with anyvit.elastic(model), then train"
            )
        return model


def _heads(setting: Setting) -> int:
    if set(setting) != {"heads"}:
        raise SettingError(f"the heads lever is set by {{'heads': k}}: got {dict(setting)}")
    return int(setting["heads"])
