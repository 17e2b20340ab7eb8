"""MLPs of which a part stays linear in training and merges afterwards (RePaViT, arXiv 2505.21847). Needs training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.contract import share
from anyvit.models.hydravit import HydraViT
from anyvit.models.layers.channel_idle import channel_idle, idle_mlps, idle_share, merged, why_not_idle
from anyvit.protocols import UNCHANGED, Needs, Setting, Stage
from anyvit.scaling.shrink.base import BaseLever

WIDE = 768
"""Channels of the last block from which the paper recommends 0.75; narrower models lose too much accuracy."""


class Reparameterize(BaseLever):
    """The setting is `{"idle": share}`: that share of the MLPs' hidden units is not activated, and merges."""

    name, stage = "reparameterize", Stage.MERGE

    def needs(self, setting: Setting) -> Needs:
        return Needs.TRAINING if setting else Needs.NOTHING

    def why_not(self, model: nn.Module) -> str | None:
        return why_not_idle(model)

    def before_training(self, model: nn.Module, setting: Setting) -> nn.Module:
        """The channel-idle form of `model`, which is to be trained anew; of an elastic model, that of its full size."""
        if idle_mlps(model):
            return model if not setting else _checked(model, setting)
        plain = model.extract(model.num_heads) if isinstance(model, HydraViT) else model
        return channel_idle(plain, _idle(setting) if setting else recommended(plain))

    def settings(self, model: nn.Module) -> Sequence[Setting]:
        """Unmerged and merged; only UNCHANGED where there is nothing that would get smaller."""
        smaller = any(mlp.mergeable and mlp.saves for mlp in idle_mlps(model))
        return [UNCHANGED, {"idle": idle_share(model)}] if smaller else [UNCHANGED]

    def conflicts(self) -> Mapping[str, str]:
        return {
            "heads": "its BatchNorms keep the statistics of one width, and a subnetwork of fewer heads has others: "
            "extract the subnetwork, and train that with this lever"
        }

    def apply(self, model: nn.Module, setting: Setting, *, images: Tensor | None = None) -> nn.Module:
        """The merged model, in evaluation mode, which answers as `model` does."""
        return merged(_checked(model, setting)) if setting else share(model)


def recommended(model: Any) -> float:
    """The idle ratio that the paper's table recommends for a model of this width."""
    return 0.75 if model.num_features >= WIDE else 0.5


def _checked(model: nn.Module, setting: Setting) -> nn.Module:
    """`model`, if it is trained for `setting`."""
    asked = _idle(setting)
    if not idle_mlps(model):
        raise ModelError(
            f"{type(model).__name__} is not channel-idle: make it so with before_training, or name one of the "
            "repavit models, then train"
        )
    if asked != idle_share(model):
        raise SettingError(f"this model was trained with {idle_share(model)} of its hidden units idle, not {asked}")
    return model


def _idle(setting: Setting) -> float:
    if set(setting) != {"idle"} or isinstance(setting["idle"], bool) or not isinstance(setting["idle"], int | float):
        raise SettingError(f"the reparameterize lever is set by {{'idle': share}}: got {dict(setting)}")
    return float(setting["idle"])
