"""What a weight is worth, told from the weights alone: no images, no gradients.

Paper:   Data-independent Module-aware Pruning for Hierarchical Vision Transformers, ICLR 2024, arXiv 2404.13648
Differs: the paper's code was not published; where its text leaves a choice open, the choice is said here

Where the weights of a layer go one by one, the smallest first, the importance of a weight is its share of the energy
that is left when its turn comes: w² / (the sum of its own square and those of all that are larger). It does not change
when the layer is scaled, so layers of different scale can compete; those that do are the members of one functional
module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from anyvit.errors import ModelError
from anyvit.models.layers.channel_idle import ChannelIdleMlp, MergedMlp
from anyvit.models.layers.sparse import SparseLinear

Modules = Mapping[str, tuple[str, ...]]

MODULES: Modules = {"qkv": ("attn.qkv",), "proj": ("attn.proj",), "mlp": ("mlp.fc1", "mlp.fc2")}
"""The functional modules, and how the paths of their layers end, in timm's plain ViT and Swin alike. A module spans all
blocks and stages. Everything else (embeddings, norms, biases, patch merging, the classifier) is never pruned."""


def prunable(model: nn.Module, modules: Modules = MODULES) -> dict[str, dict[str, Tensor]]:
    """The matrices of each module by name, in the order of the state dict. Quantized ones are left out."""
    linears = {
        path: layer
        for path, layer in model.named_modules()
        if type(layer) in (nn.Linear, SparseLinear) and type(layer.weight) is nn.Parameter
    }
    return {
        module: {f"{path}.weight": layer.weight for path, layer in linears.items() if _ends(path, endings)}
        for module, endings in modules.items()
    }


def _ends(path: str, endings: tuple[str, ...]) -> bool:
    return f".{path}".endswith(tuple(f".{ending}" for ending in endings))


def why_not_prunable(model: nn.Module) -> str | None:
    """The reason why `model` cannot be pruned, or None."""
    for path, module in model.named_modules():
        if isinstance(module, ChannelIdleMlp | MergedMlp):
            return f"{path} is a {type(module).__name__}: merging mixes the weights that pruning tells apart"
    if any(prunable(model).values()):
        return None
    patterns = ", ".join(f"*.{ending}" for endings in MODULES.values() for ending in endings)
    return f"a {type(model).__name__} has no unquantized linear layers named {patterns}"


def relative(energies: Tensor) -> Tensor:
    """Each energy as a share of the sum of itself and all larger ones, in [0, 1]; 0 where that sum is 0.

    Args:
        energies: Not negative, any shape. Of equal ones that with the lower flat index counts as the smaller.

    Returns:
        The same shape, in float64: in float32 sums over millions lose the small terms that decide the order. Always
        on the CPU, so that the same weights give the same order on every device.
    """
    ascending, order = energies.detach().to("cpu", torch.float64).flatten().sort(stable=True)
    left = ascending.flip(0).cumsum(0).flip(0)
    shares = torch.where(left > 0, ascending / left, 0.0)
    return torch.empty_like(shares).scatter_(0, order, shares).view(energies.shape)


def importance(weight: Tensor) -> Tensor:
    """The importance of every weight of one matrix, in float64: 1 for the largest."""
    return relative(weight.detach().to("cpu", torch.float64).square())


def keep_all_but(scores: Sequence[Tensor], count: int) -> tuple[list[Tensor], float | None]:
    """What stays when the `count` lowest scores go, ranked over all tensors; of equal ones the first go.

    Returns:
        By tensor, a mask that is True where a score stays; and the highest score that goes, None where none does.
    """
    pooled = torch.cat([part.flatten() for part in scores])
    stays = torch.ones(len(pooled), dtype=torch.bool)
    threshold = None
    if count:
        threshold = float(pooled.kthvalue(count).values)
        stays = pooled >= threshold
        equal = (pooled == threshold).nonzero().flatten()
        stays[equal[: count - int((~stays).sum())]] = False
    parts = stays.split([part.numel() for part in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)], threshold


def check_finite(name: str, weight: Tensor) -> None:
    """Raises ModelError, with the tensor's name, where a weight is not finite: nothing can be ranked then."""
    if not torch.isfinite(weight).all():
        raise ModelError(f"{name} holds weights that are not finite: train or load the model again")
