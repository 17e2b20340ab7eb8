"""Fewer attention groups vote (HSViT's own elastic axis; ours). Better for group dropout in training, which it adds."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.hsvit import HSViT
from anyvit.protocols import UNCHANGED, Needs, Setting, Stage
from anyvit.scaling.shrink.base import BaseLever

DROP_RATE = 0.1
"""How often a group misses the vote of an image in training, where the lever makes a model's trainable form."""

_SHARES = (0.75, 0.5, 0.25)


class Groups(BaseLever):
    """The setting is `{"groups": g}`: the first g groups, and of the last convolution their channels alone."""

    name, stage = "groups", Stage.SHAPE

    def needs(self, setting: Setting) -> Needs:
        return Needs.TRAINING if setting else Needs.NOTHING

    def why_not(self, model: nn.Module) -> str | None:
        if not isinstance(model, HSViT):
            return f"a {type(model).__name__} has no independent attention groups: HSViT has"
        return None if model.num_groups > 1 else f"it has {model.num_groups} groups, and at least one has to vote"

    def before_training(self, model: nn.Module, setting: Setting) -> nn.Module:
        """The model with group dropout, unless it has some already."""
        if not isinstance(model, HSViT) or model.group_drop_rate:
            return model
        trainable = copy.deepcopy(model)
        trainable.group_drop_rate = trainable.arguments["group_drop_rate"] = DROP_RATE
        return trainable

    def settings(self, model: nn.Module) -> Sequence[Setting]:
        """All groups, and three, two and one quarter of them."""
        held = len(model.groups) if isinstance(model, HSViT) else 1
        fewer = dict.fromkeys(max(1, round(held * share)) for share in _SHARES)
        return [UNCHANGED, *({"groups": groups} for groups in fewer if groups < held)]

    def apply(self, model: nn.Module, setting: Setting, *, images: Tensor | None = None) -> nn.Module:
        """The model of the first groups, whose weights are views of those of `model`."""
        if not setting:
            return model
        if not isinstance(model, HSViT):
            raise ModelError(f"the groups lever: {self.why_not(model)}")
        return model.subnetwork(_groups(setting, len(model.groups)))


def _groups(setting: Setting, held: int) -> int:
    groups = setting.get("groups")
    if set(setting) != {"groups"} or not isinstance(groups, int) or not 1 <= groups <= held:
        raise SettingError(f"the groups lever is set by {{'groups': 1 to {held}}}: got {dict(setting)}")
    return groups
