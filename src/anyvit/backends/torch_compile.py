"""PyTorch compiled for one batch size by torch.compile (inductor), in the precisions of PyTorch as it is."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType

import torch
from torch import Tensor, nn

from anyvit.backends import precision
from anyvit.backends.torch_eager import TorchRunner, eager_runner, try_out
from anyvit.protocols import Device, Needs, Runner, Setting


class CompiledRunner:
    """Answers batches of one shape, that of the first, with code compiled for it, and all others eagerly.

    Code for any batch size would take another compilation, longer than the first and in the middle of an answer.
    PyTorch would compile again, too, where threads, strides or gradients are others than before: all three are fixed.

    Args:
        eager: The same model, not compiled.
        threads: What the code is compiled for.
    """

    def __init__(self, eager: TorchRunner, threads: int) -> None:
        self._eager = eager
        self._compiled = replace(eager, model=_compiled(eager.model), threads=threads)
        self._shape: torch.Size | None = None

    @torch.inference_mode()
    def __call__(self, images: Tensor, /) -> Tensor:
        self._shape = self._shape or images.shape
        if images.shape != self._shape:
            return self._eager(images)
        return self._compiled(images.clone(memory_format=torch.contiguous_format))


class TorchCompile:
    """Runs what can be captured in one graph. A setting without threads is compiled for one."""

    name = "torch-compile"

    def why_not(self, model: nn.Module) -> str | None:
        return _lacking(precision.device_of(model).type)

    def settings(self, device: Device) -> Sequence[Setting]:
        """The precisions that the device computes in; none where nothing can be compiled.

        One image, one thread with AVX-512: on DeiT-Small at 224 pixels compiling saves 1 % of the time in float32, none
        in bfloat16 and 26 % in int8-dynamic, where the rounding joins its neighbours; on a width of 192 at 32 pixels it
        saves 5, 16 and 56 %. So all three are left to the timing.
        """
        if _lacking(device.kind):
            return []
        return [*precision.float_precisions(device), *precision.int8_precisions(device)]

    def absent(self, device: Device) -> str | None:
        return _lacking(device.kind) or precision.int8_absent(device)

    def needs(self, setting: Setting) -> Needs:
        return Needs.NOTHING

    def prepare(self, model: nn.Module, setting: Setting, example: Tensor, *, images: Tensor | None = None) -> Runner:
        """A runner that is compiled for batches like `example`, which takes from seconds to a minute.

        Raises:
            SettingError: An unknown setting.
            MissingExtraError: int8-dynamic without torchao.
            ModelError: The model cannot be compiled.
        """
        runner = self._runner(model, setting)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* does not implement _stable_hash_for_caching")  # torchao's
            try_out(runner, example, f"torch.compile cannot take {type(model).__name__}")
        return runner

    def save(self, runner: Runner, folder: Path) -> None:
        """Nothing to write: compiled code is bound to a machine, and to run it from a file is to trust the file."""

    def load(self, model: nn.Module, setting: Setting, folder: Path) -> Runner:
        """A runner that compiles anew, at its first batch; fast where PyTorch's own cache still has the code."""
        return self._runner(model, setting)

    def _runner(self, model: nn.Module, setting: Setting) -> CompiledRunner:
        return CompiledRunner(eager_runner(self.name, model, setting), setting.get("threads", 1))


def _compiled(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`model` compiled at its first call, whole, as a function with a code object of its own.

    PyTorch keeps what it compiled by code object, a few of them each; a class of models has only one.
    """

    def answer(images: Tensor) -> Tensor:
        return model(images)

    code = answer.__code__.replace()
    own = FunctionType(code, answer.__globals__, answer.__name__, None, answer.__closure__)
    return torch.compile(own, dynamic=False, fullgraph=True)


def _lacking(kind: str) -> str | None:
    """What is missing to compile for that kind of device, with the remedy, or None."""
    if kind not in ("cpu", "cuda"):
        return f"torch.compile is for cpu and cuda, not for {kind}"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(compiler):
        return f"torch.compile needs a C++ compiler, and there is no {compiler}: install one, or name yours in CXX"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "torch.compile needs the headers of Python: install python3-dev"
    if kind == "cuda" and not find_spec("triton"):
        return "torch.compile needs Triton for a GPU: pip install triton"
    return None
