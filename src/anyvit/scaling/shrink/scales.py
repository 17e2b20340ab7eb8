"""Several scales of the image for a frozen model, instead of a larger one (S2, arXiv 2403.13043). Needs training, once.

The lever in the other direction: its trainable form costs more than the model. Only the classifiers learn.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.multiscale import MultiScale, why_not_multi_scale
from anyvit.protocols import UNCHANGED, Needs, Setting, Stage
from anyvit.scaling.shrink.base import BaseLever

SCALES = 2
"""As many as the trainable form has where the setting names no number: five times the cost of one."""


class Scales(BaseLever):
    """The setting is `{"scales": k}`: the image at its own size, at twice, … k times that size.

    A wrapped model has more features, and so a new classifier: `before_training` wraps the model, and the search then
    chooses how many of its scales run, which makes it cheaper as other levers do. UNCHANGED is all of them; of a model
    that is not wrapped it is the model.
    """

    name, stage = "scales", Stage.WRAP

    def needs(self, setting: Setting) -> Needs:
        return Needs.TRAINING if setting else Needs.NOTHING

    def why_not(self, model: nn.Module) -> str | None:
        return None if isinstance(model, MultiScale) else why_not_multi_scale(model)

    def before_training(self, model: nn.Module, setting: Setting) -> MultiScale:
        """A frozen copy of `model` over so many scales, with a classifier for each number of them."""
        if isinstance(model, MultiScale):
            return model
        numbers = range(1, (_scales(setting) if setting else SCALES) + 1)
        return MultiScale(copy.deepcopy(model).requires_grad_(False), tuple(numbers), trained_for=tuple(numbers))

    def settings(self, model: nn.Module) -> Sequence[Setting]:
        """Those that `model` is trained for; only UNCHANGED where it is not wrapped."""
        fewer = model.trained_for[-2::-1] if isinstance(model, MultiScale) else ()
        return [UNCHANGED, *({"scales": scales} for scales in fewer)]

    def apply(self, model: nn.Module, setting: Setting, *, images: Tensor | None = None) -> nn.Module:
        """The model of the first scales alone, over the tensors of `model`."""
        if isinstance(model, MultiScale):
            return model.subnetwork(_scales(setting) if setting else len(model.scales))
        if setting:
            raise ModelError(
                f"{type(model).__name__} sees one scale: wrap it in anyvit.models.multiscale.MultiScale, then train"
            )
        return model


def _scales(setting: Setting) -> int:
    scales = setting.get("scales")
    if set(setting) != {"scales"} or not isinstance(scales, int) or scales < 1:
        raise SettingError(f"the scales lever is set by {{'scales': k}}, k from 1: got {dict(setting)}")
    return scales
