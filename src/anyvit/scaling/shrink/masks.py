"""Single weights set to zero, anywhere in a matrix (DIMAP's own way). The shapes stay, so no time is saved.

A zero is its own mask: the layers of `models/layers/sparse.py` give their zeros no gradient, so they stay zeros while
the model is trained, and its state dict is an ordinary one of timm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from anyvit.costs.counts import count_macs, count_params
from anyvit.errors import SettingError
from anyvit.models.contract import Model, share
from anyvit.models.layers.sparse import SparseLinear
from anyvit.scaling.shrink.importance import MODULES, Modules, check_finite, importance, keep_all_but, prunable


@dataclass(frozen=True)
class Masks:
    """What stays of a model.

    Attributes:
        keep: By matrix, a mask that is True where a weight stays.
        thresholds: By module, the highest importance that goes; modules of which nothing goes are left out.
    """

    keep: Mapping[str, Tensor]
    thresholds: Mapping[str, float]

    @property
    def densities(self) -> dict[str, float]:
        """By matrix, the share of its weights that stays."""
        return {name: float(keep.double().mean()) for name, keep in self.keep.items()}


def weakest(model: nn.Module, sparsity: float, *, modules: Modules = MODULES) -> Masks:
    """Masks without the weights that matter least, the same share of each module.

    Args:
        model: A ViT or Swin with timm's names. It is left as it is.
        sparsity: The share of each module that goes, in [0, 1); rounded down to whole weights.
        modules: Who competes with whom. `{"all": (…)}` ranks all in one, which costs 0.1 to 0.3 points in the paper.

    Raises:
        ModelError: A weight is not finite; the message names the tensor.
        SettingError: `sparsity` is out of range, or would leave nothing of a layer.
    """
    check_share("sparsity", sparsity)
    keep: dict[str, Tensor] = {}
    thresholds: dict[str, float] = {}
    for module, weights in prunable(model, modules).items():
        if not weights:
            continue
        for name, weight in weights.items():
            check_finite(name, weight)
        scores = [importance(weight) for weight in weights.values()]
        found, threshold = keep_all_but(scores, math.floor(sparsity * sum(map(Tensor.numel, scores))))
        for (name, weight), part in zip(weights.items(), found, strict=True):
            if not part.any() and weight.any():
                raise SettingError(f"sparsity {sparsity:g} leaves nothing of {name}: take less")
            keep[name] = part
        if threshold is not None:
            thresholds[module] = threshold
    order = [name for name, _ in model.named_parameters() if name in keep]
    return Masks({name: keep[name] for name in order}, thresholds)


def check_share(name: str, value: object) -> None:
    """Raises SettingError where `value` is not a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise SettingError(f"{name} must be a number from 0 to below 1: got {value!r}")


def masked(model: Model, keep: Mapping[str, Tensor]) -> Model:
    """The model with zeros where a mask says so; training leaves them zeros. What has no mask is shared with `model`.

    Args:
        model: It is left as it is.
        keep: By the name of a linear layer's weight, True where a weight stays.
    """
    twin = share(model)
    for name, part in keep.items():
        layer: Any = twin.get_submodule(name.removesuffix(".weight"))
        weight = layer.weight.detach().masked_fill(~part.to(layer.weight.device), 0)
        layer.__class__ = SparseLinear
        layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    return twin


def keeping_zeros(model: Model) -> Model:
    """A model that was pruned elsewhere, and whose zeros stay zeros when it is trained."""
    weights = {name: weight for part in prunable(model).values() for name, weight in part.items()}
    return masked(model, {name: weight != 0 for name, weight in weights.items()})


def count_nonzero(model: nn.Module, image_size: int, in_chans: int = 3) -> dict[str, int]:
    """Parameters and multiply-accumulates of one image without the zeros of pruned layers.

    No dense runtime saves them: they say what a sparse one could. What a model really holds and computes, its zeros
    included, is counted by `anyvit.costs.counts`.
    """
    twin, rows = share(model), dict[str, int]()
    zeros = {}
    for path, layer in twin.named_modules():
        if isinstance(layer, SparseLinear):
            zeros[path] = int((layer.weight == 0).sum())
            layer.register_forward_hook(_counting(rows, path))
    macs = count_macs(twin, image_size, in_chans)
    return {
        "params": count_params(model) - sum(zeros.values()),
        "macs": macs - sum(count * rows[path] for path, count in zeros.items()),
    }


def _counting(rows: dict[str, int], path: str) -> Callable[[nn.Linear, tuple[Tensor], Tensor], None]:
    """A hook that notes how many tokens pass a layer."""

    def note(layer: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
        rows[path] = output.numel() // layer.out_features

    return note
