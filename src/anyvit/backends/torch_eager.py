"""PyTorch as it is, in float32, bfloat16, float16 on a GPU, or int8-dynamic by torchao."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anyvit.backends import precision
from anyvit.errors import ModelError
from anyvit.protocols import Device, Needs, Runner, Setting


@dataclass(frozen=True)
class TorchRunner:
    """A model in evaluation mode that answers with float32 probabilities, on so many threads; None: as it is called."""

    model: Callable[[Tensor], Tensor]
    device: torch.device
    dtype: torch.dtype
    threads: int | None = None

    @torch.inference_mode()
    def __call__(self, images: Tensor, /) -> Tensor:
        with precision.on_threads(self.threads):
            return self.model(images.to(self.device, self.dtype)).float().softmax(1)


class TorchEager:
    """Runs any model, on the device where its weights are.

    A setting without threads computes on as many as PyTorch is set to.
    """

    name = "torch"

    def why_not(self, model: nn.Module) -> str | None:
        return None

    def settings(self, device: Device) -> Sequence[Setting]:
        """The precisions that the processor computes in; int8-dynamic on a GPU is slow unless it is compiled."""
        return [*precision.float_precisions(device), *precision.int8_precisions(device)]

    def absent(self, device: Device) -> str | None:
        return precision.int8_absent(device)

    def needs(self, setting: Setting) -> Needs:
        return Needs.NOTHING

    def prepare(self, model: nn.Module, setting: Setting, example: Tensor, *, images: Tensor | None = None) -> Runner:
        """A runner that shares the weights of `model` in float32, and has a copy of them in other precisions.

        Raises:
            SettingError: An unknown setting.
            MissingExtraError: int8-dynamic without torchao.
            ModelError: torchao cannot take the model: it uses its weights in other ways than linear layers do.
        """
        runner = eager_runner(self.name, model, setting)
        if setting.get("precision") == "int8-dynamic":
            try_out(runner, example, f"torchao cannot take {type(model).__name__}")
        return runner

    def save(self, runner: Runner, folder: Path) -> None:
        """Nothing to write: the model and the setting are enough."""

    def load(self, model: nn.Module, setting: Setting, folder: Path) -> Runner:
        return eager_runner(self.name, model, setting)


def eager_runner(backend: str, model: nn.Module, setting: Setting) -> TorchRunner:
    """`model` in the precision of a setting of `backend`, ready to answer."""
    wanted = precision.precision_of(backend, setting)
    converted, device = precision.in_precision(model, wanted), precision.device_of(model)
    # float32 is whatever the weights are in
    dtype = next(model.parameters()).dtype if wanted == "float32" else precision.DTYPES[wanted]
    return TorchRunner(converted, device, dtype, setting.get("threads"))


def try_out(runner: Runner, example: Tensor, words: str) -> None:
    """Answer `example` once, for what is only found out, or made, at the first answer.

    Raises:
        ModelError: It fails; the message begins with `words`.
    """
    try:
        runner(example)
    except Exception as error:  # of any kind: libraries of many authors are at work
        said = str(error).strip().partition("\n")[0]
        raise ModelError(f"{words}: {type(error).__name__}: {said}") from error
