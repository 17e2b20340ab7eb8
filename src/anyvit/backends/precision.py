"""A model in a precision, for the backends that run in PyTorch: float32 over the same weights, all others in a copy.

A copy in bfloat16 or float16 is cast whole: PyTorch's kernels add up in float32, and what layers keep in float32 by
themselves, such as the sizes of merged tokens, stays so. In int8-dynamic (torchao) linear layers have 8-bit weights
with a scale for each row, and round what comes in to 8 bits with a scale for each token; all else stays float32, and
no images are needed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain

import torch
from torch import Tensor, nn

from anyvit.errors import MissingExtraError, SettingError
from anyvit.protocols import UNCHANGED, Device, Setting

BFLOAT16: Setting = {"precision": "bfloat16"}
FLOAT16: Setting = {"precision": "float16"}
INT8_DYNAMIC: Setting = {"precision": "int8-dynamic"}

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8-dynamic": torch.float32,
}
"""Precisions, and the type of the images that a model takes in each."""

FAST_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is Arm's name for it
FAST_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})  # the last two are Arm's

LEAST_CHANNELS = 2
"""A product of 8-bit matrices needs more than one column."""


def float_precisions(device: Device) -> list[Setting]:
    """float32, and the shorter floats that may be faster on `device`: on a processor only those it computes in."""
    if device.kind == "cuda":
        return [UNCHANGED, BFLOAT16, FLOAT16]
    return [UNCHANGED, BFLOAT16] if device.kind != "cpu" or may_have(device, FAST_BFLOAT16) else [UNCHANGED]


def int8_precisions(device: Device) -> list[Setting]:
    """int8-dynamic where torchao is installed and the processor multiplies 8-bit integers."""
    return [INT8_DYNAMIC] if fast_int8(device) and find_spec("torchao") else []


def int8_absent(device: Device) -> str | None:
    """What torchao would add on `device`, where it is not installed."""
    if fast_int8(device) and not find_spec("torchao"):
        return "int8-dynamic by torchao: pip install 'anyvit[int8]'"
    return None


def fast_int8(device: Device) -> bool:
    """Whether `device` is a processor that multiplies 8-bit integers, or one of which that is not known."""
    return device.kind == "cpu" and may_have(device, FAST_INT8)


def may_have(device: Device, features: frozenset[str]) -> bool:
    """Whether a processor has one of `features`; where it says nothing about itself, that is left to the timing."""
    return not device.features or not features.isdisjoint(device.features)


def precision_of(backend: str, setting: Setting, precisions: Sequence[str] = tuple(DTYPES)) -> str:
    """The precision of a backend's setting, which may name `threads` beside it.

    Raises:
        SettingError: Anything else is in it, or another precision than `precisions`.
    """
    precision, threads = setting.get("precision", "float32"), setting.get("threads", 1)
    known = set(setting) <= {"precision", "threads"} and precision in precisions
    if not known or not isinstance(threads, int) or threads < 1:
        raise SettingError(
            f"the {backend} backend is set by {{}}, a precision of {', '.join(precisions)}, and threads from 1: "
            f"got {dict(setting)}"
        )
    return precision


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """`model` in evaluation mode, in one of `DTYPES`; over the same weights in float32, else in a copy.

    Raises:
        MissingExtraError: int8-dynamic without torchao.
    """
    if precision == "float32":
        return copy.deepcopy(model, {id(tensor): tensor for tensor in _tensors(model)}).eval()
    own = _with_plain_layers(copy.deepcopy(model)).eval().requires_grad_(False)
    return _in_int8(own) if precision == "int8-dynamic" else own.to(DTYPES[precision])


def device_of(model: nn.Module) -> torch.device:
    """Where the weights of `model` are."""
    return next(_tensors(model)).device


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """PyTorch computes on `count` threads inside; None leaves that as it is."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _with_plain_layers(model: nn.Module) -> nn.Module:
    """Layers whose weights lie as views of others' become ordinary ones, which they say how to by `as_linear`."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            as_linear = getattr(child, "as_linear", None)
            if as_linear is not None:
                setattr(parent, name, as_linear())
    return model


def _in_int8(model: nn.Module) -> nn.Module:
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
        from torchao.utils import should_reduce_range
    except ImportError as error:
        raise MissingExtraError("torchao", "int8") from error
    config = Int8DynamicActivationInt8WeightConfig(
        set_inductor_config=False,  # it is the whole process's
        reduce_range=should_reduce_range(device_of(model)),  # without such products sums of 16 bits may overflow
    )
    quantize_(model, config, lambda module, name: _is_rounded(module))
    return model


def _is_rounded(module: nn.Module) -> bool:
    """Linear layers; but not those whose owner reads the weight itself, or that are hardly a matrix."""
    if not isinstance(module, nn.Linear) or isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    return min(module.weight.shape) >= LEAST_CHANNELS
