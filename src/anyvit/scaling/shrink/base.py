"""What most levers have in common."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from anyvit.protocols import Needs, Setting


class BaseLever:
    """Defaults of a lever that needs neither training nor images and goes with all others."""

    def needs(self, setting: Setting) -> Needs:
        return Needs.NOTHING

    def before_training(self, model: nn.Module, setting: Setting) -> nn.Module:
        return model

    def conflicts(self) -> Mapping[str, str]:
        return {}
