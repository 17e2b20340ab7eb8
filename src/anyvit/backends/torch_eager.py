"""PyTorch as it is, in float32 or bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from anyvit.errors import SettingError
from anyvit.protocols import UNCHANGED, Device, Needs, Runner, Setting

BFLOAT16: Setting = {"precision": "bfloat16"}
FAST_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is Arm's name for it


@dataclass(frozen=True)
class TorchRunner:
    """A model in evaluation mode that answers with float32 probabilities."""

    model: nn.Module
    device: torch.device
    dtype: torch.dtype

    @torch.inference_mode()
    def __call__(self, images: Tensor, /) -> Tensor:
        return self.model(images.to(self.device, self.dtype)).float().softmax(1)


class TorchEager:
    """Runs any model, on the device where its weights are."""

    name = "torch"

    def why_not(self, model: nn.Module) -> str | None:
        return None

    def settings(self, device: Device) -> Sequence[Setting]:
        """bfloat16 only where the processor computes in it; where that cannot be known, it is left to the timing."""
        fast = device.kind != "cpu" or not device.features or not FAST_BFLOAT16.isdisjoint(device.features)
        return [UNCHANGED, BFLOAT16] if fast else [UNCHANGED]

    def absent(self, device: Device) -> str | None:
        return None

    def needs(self, setting: Setting) -> Needs:
        return Needs.NOTHING

    def prepare(self, model: nn.Module, setting: Setting, example: Tensor, *, images: Tensor | None = None) -> Runner:
        """A runner that shares the weights of `model` in float32, and has a copy of them in bfloat16."""
        return self._runner(model, setting)

    def save(self, runner: Runner, folder: Path) -> None:
        """Nothing to write: the model and the setting are enough."""

    def load(self, model: nn.Module, setting: Setting, folder: Path) -> Runner:
        return self._runner(model, setting)

    def _runner(self, model: nn.Module, setting: Setting) -> Runner:
        if setting not in (UNCHANGED, BFLOAT16):
            raise SettingError(f"the torch backend is set by {{}} or {dict(BFLOAT16)}: got {dict(setting)}")
        weight = next(model.parameters())
        if setting == BFLOAT16:
            return TorchRunner(copy.deepcopy(model).eval().to(torch.bfloat16), weight.device, torch.bfloat16)
        kept = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
        return TorchRunner(copy.deepcopy(model, kept).eval(), weight.device, weight.dtype)
