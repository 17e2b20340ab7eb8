"""What can be counted without running anything: parameters, multiply-accumulates, bytes of weights.

Counted on the model itself, and as closed forms over a specification for planners that price shapes by the thousand.
MACs are those of matrix products and convolutions; norms, softmax, GELU and biases are not counted. What papers of this
family call FLOPs are MACs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from anyvit.errors import ModelError, SettingError


def count_params(model: nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, image_size: int, in_chans: int = 3) -> int:
    """Multiply-accumulates of one image (1, in_chans, image_size, image_size), counted on the meta device.

    The model is left as it is: a copy of it without memory answers. Fused attention is off meanwhile, because
    counters miss some fused operators.

    Raises:
        ModelError: The model cannot answer such an image, or looks at values, which the meta device does not have.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    image = torch.empty(1, in_chans, image_size, image_size, dtype=dtype, device="meta")
    try:
        with _CopyToMeta():
            twin = copy.deepcopy(model).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
            twin(image)
    except Exception as error:
        raise ModelError(
            f"cannot count the MACs of {type(model).__name__} at {in_chans} x {image_size} x {image_size}: {error}"
        ) from error
    return counter.get_total_flops() // 2


def weights_size(model: nn.Module) -> int:
    """Bytes of the tensors in the model's state, tied ones once. A file adds a header: some 100 bytes a tensor."""
    state: Mapping[str, Any] = model.state_dict(keep_vars=True)
    return sum({id(value): value.nbytes for value in state.values() if isinstance(value, Tensor)}.values())


def count_params_together(*models: nn.Module) -> int:
    """Number of parameters of models that are kept side by side: what lies in the same memory counts once."""
    covered: dict[int, Tensor] = {}  # by storage, which of its elements are a parameter's
    for parameter in (parameter for model in models for parameter in model.parameters()):
        storage = parameter.untyped_storage()
        nothing = torch.zeros(storage.nbytes() // parameter.itemsize, dtype=torch.bool)
        elements = covered.setdefault(storage.data_ptr(), nothing)
        elements.as_strided(parameter.shape, parameter.stride(), parameter.storage_offset()).fill_(value=True)
    return sum(int(elements.sum()) for elements in covered.values())


class _CopyToMeta(TorchFunctionMode):
    """Within it, `copy.deepcopy` takes every tensor, parameters and views alike, to the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.clone:  # how a parameter is copied
            return torch.empty_like(args[0], device="meta")
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), torch.empty_like(tensor, device="meta"))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class Specification:
    """The shape of a plain ViT: class token, learned position table, biases everywhere.

    Raises:
        SettingError: A value that is not above 0, or an image size that the patch size does not divide.
    """

    image_size: int
    patch_size: int
    depth: int
    heads: int
    head_dim: int
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    in_chans: int = 3

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise SettingError(f"{name} {getattr(self, name)} must be above 0")
        if self.image_size % self.patch_size:
            raise SettingError(f"image size {self.image_size} not divisible by patch size {self.patch_size}")

    @property
    def embed_dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def hidden_dim(self) -> int:
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def vit_params(spec: Specification) -> int:
    """Parameters of the plain ViT of this shape, exact."""
    D, M, K = spec.embed_dim, spec.hidden_dim, spec.num_classes
    patch = spec.in_chans * spec.patch_size**2
    attention = 3 * D * D + 3 * D + D * D + D
    mlp = D * M + M + M * D + D
    return (patch + 1) * D + D + (spec.num_patches + 1) * D + spec.depth * (4 * D + attention + mlp) + 2 * D + D * K + K


def vit_macs(spec: Specification) -> int:
    """Multiply-accumulates of one image through the plain ViT of this shape, exact."""
    D, M, N = spec.embed_dim, spec.hidden_dim, spec.num_patches
    T = N + 1
    attention = 4 * T * D * D + 2 * T * T * D
    mlp = 2 * T * D * M
    return N * D * spec.in_chans * spec.patch_size**2 + spec.depth * (attention + mlp) + D * spec.num_classes
