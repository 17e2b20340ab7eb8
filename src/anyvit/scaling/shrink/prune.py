"""Fewer heads and hidden units, chosen by the weights alone (DIMAP, arXiv 2404.13648); zeros where nothing shrinks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from anyvit.errors import ModelError, SettingError
from anyvit.models.contract import share
from anyvit.models.hydravit import HydraViT
from anyvit.models.layers.indexed import sliced, why_not_indexable
from anyvit.models.layers.sliceable import StackedLinear, extracted
from anyvit.protocols import UNCHANGED, Setting, Stage
from anyvit.scaling.shrink.base import BaseLever
from anyvit.scaling.shrink.importance import why_not_prunable
from anyvit.scaling.shrink.masks import check_share, masked, weakest
from anyvit.scaling.shrink.units import strongest

UNITS = "units"
ZEROS = "zeros_not_faster"

_SHARES = (0.15, 0.35, 0.55)  # the paper's


class Prune(BaseLever):
    """The setting is `{"units": s}` or `{"zeros_not_faster": s}`, with the share s that goes.

    Units are heads and hidden units, which are really removed: the model is a smaller plain ViT. Zeros are single
    weights; the model is as large and as slow as before, for no runtime here skips them, and the name says so. Both
    need no images, and both can be trained afterwards: zeros stay zeros.
    """

    name, stage = "prune", Stage.PRUNE

    def why_not(self, model: nn.Module) -> str | None:
        return why_not_prunable(model)

    def settings(self, model: nn.Module) -> Sequence[Setting]:
        """Units where the model can be cut to some of them; zeros elsewhere."""
        way = UNITS if _is_elastic(model) or why_not_indexable(model) is None else ZEROS
        return [UNCHANGED, *({way: removed} for removed in _SHARES)]

    def apply(self, model: nn.Module, setting: Setting, *, images: Tensor | None = None) -> nn.Module:
        """The pruned model, whose pruned weights are in memory of their own.

        An elastic model, or a subnetwork of one, becomes a plain ViT that is elastic no more.
        """
        way, removed = _way_and_share(setting)
        if reason := why_not_prunable(model):
            raise ModelError(f"the prune lever: {reason}")
        if not removed:
            return share(model)
        whole = _plain(model)
        if way == ZEROS:
            return masked(whole, weakest(whole, removed).keep)
        if reason := why_not_indexable(whole):
            raise ModelError(
                f"{type(whole).__name__} cannot lose heads and hidden units: {reason}. "
                f"Set the prune lever by {{'{ZEROS}': {removed:g}}}, which saves no time"
            )
        return sliced(whole, strongest(whole, removed))  # type: ignore[arg-type]  # a plain ViT, as was just asked


def _way_and_share(setting: Setting) -> tuple[str, float]:
    if not setting:
        return UNITS, 0.0
    way = next(iter(setting))
    if len(setting) > 1 or way not in (UNITS, ZEROS):
        raise SettingError(
            f"the prune lever is set by {{'{UNITS}': share}} or {{'{ZEROS}': share}}: got {dict(setting)}"
        )
    check_share(f"the share of {way} that the prune lever removes", setting[way])
    return way, setting[way]


def _is_elastic(model: nn.Module) -> bool:
    """Whether `model` is elastic, or a subnetwork of one that is made of views."""
    return isinstance(model, HydraViT) or any(isinstance(layer, StackedLinear) for layer in model.modules())


def _plain(model: nn.Module) -> nn.Module:
    """The model made of plain timm layers: what comes from an elastic one is copied."""
    if isinstance(model, HydraViT):
        return model.extract(model.num_heads)
    return extracted(model) if _is_elastic(model) else model  # type: ignore[arg-type]  # only ViTs have such layers
