"""How fast this machine is at a model and at its parts, measured with the library's one timing protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anyvit.costs.counts import count_macs
from anyvit.costs.device import this_device
from anyvit.costs.timing import measure_latencies
from anyvit.errors import ModelError
from anyvit.models.contract import blocks_of, is_plain_vit, why_not_plain
from anyvit.models.hsvit import HSViT
from anyvit.protocols import Progress, silent
from anyvit.scaling.spread.boards import CostTable
from anyvit.scaling.spread.sizes import HSViTShape

Calls = dict[tuple[str, int], Callable[[Tensor], object]]
"""What is timed, by mode and number of groups or heads. The hub's own work is of no groups."""

PROTOCOL = {"warmup_s": 0.2, "runs": 10, "min_time_s": 0.2}
"""Timing of many parts in seconds, good enough to plan by; a table is no promise."""


def macs_per_second(model: nn.Module, *, threads: int = 1, progress: Progress = silent, **protocol: Any) -> float:
    """Multiply-accumulates a second of this machine at the whole of `model`, one image a call.

    Args:
        model: An HSViT or a plain ViT, in evaluation mode.
        threads: Threads of the model.
        progress: Told how far the rounds are.
        protocol: Overrides of `PROTOCOL`, and of all else that `measure_latencies` takes.

    Raises:
        ModelError: Another kind of model.
    """
    seconds = _seconds({("whole", 0): model}, _example(model), threads, progress, protocol)
    return macs_of(model) / seconds["whole", 0]


def measure_costs(
    model: nn.Module, name: str, *, threads: int = 1, progress: Progress = silent, **protocol: Any
) -> CostTable:
    """The cost table of this machine.

    Args:
        model: An HSViT, whose parts of 1, 2, 4, … groups and whose hub's share are measured with the trunk on the hub
            and with the trunk on every board; or a plain ViT, whose sub-models of 1, 2, 4, … heads are.
        name: What it is called.
        threads: Threads of the model.
        progress: Told how far the rounds are.
        protocol: Overrides of `PROTOCOL`, and of all else that `measure_latencies` takes.

    Raises:
        ModelError: Another kind of model, or an HSViT without groups.
    """
    example = _example(model)
    calls = _parts(model, example) if isinstance(model, HSViT) else _submodels(model)
    seconds = _seconds(calls, example, threads, progress, protocol)
    by_mode: dict[str, dict[int, float]] = {}
    for (mode, count), figure in seconds.items():
        by_mode.setdefault(mode, {})[count] = figure
    hub_s = {mode: by_count.pop(0) for mode, by_count in by_mode.items() if 0 in by_count}
    return CostTable(name, macs_of(model), by_mode, hub_s, this_device().fingerprint)


def macs_of(model: nn.Module) -> int:
    """Multiply-accumulates of one image through an HSViT or a plain ViT."""
    if isinstance(model, HSViT):
        return HSViTShape.of(model.arguments).whole().macs
    return count_macs(model, _example(model).shape[-1])


def _example(model: nn.Module) -> Tensor:
    """A fixed random image (1, C, H, W)."""
    if isinstance(model, HSViT):
        shape = (model.in_chans, *model.img_size)
    elif is_plain_vit(model):
        shape = (model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    else:
        raise ModelError(f"only an HSViT or a plain ViT can be spread: {why_not_plain(model)}.")
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def _parts(model: HSViT, example: Tensor) -> Calls:
    """What the hub and the boards do in either mode, on inputs as they will have them."""
    if not model.num_groups:
        raise ModelError("a model without attention groups (num_groups 0) cannot be spread by groups.")
    with torch.inference_mode():
        tokens = model.tokens(example)
        votes = model.attend(tokens)
    calls: Calls = {
        ("hub", 0): lambda image: (model.tokens(image), model.forward_head(votes)),
        ("boards", 0): lambda image: model.forward_head(votes),
    }
    for count in _counts(len(model.groups)):
        part = model.subnetwork(count)
        own = tokens[:, : count * model.tokens_per_group]
        calls["hub", count] = lambda image, part=part, own=own: part.attend(own)  # type: ignore[misc]
        calls["boards", count] = part.forward_features
    return calls


def _submodels(model: nn.Module) -> Calls:
    """Plain ViTs of fewer heads, of proportional width and hidden size, without a head."""
    assert isinstance(model, VisionTransformer)
    block, patches = blocks_of(model)[0], model.patch_embed
    heads, width = block.attn.num_heads, model.embed_dim
    return {
        ("heads", count): VisionTransformer(
            img_size=patches.img_size,
            patch_size=patches.patch_size,
            in_chans=patches.proj.in_channels,
            embed_dim=width * count // heads,
            depth=len(model.blocks),
            num_heads=count,
            mlp_ratio=block.mlp.fc1.out_features / width,
            num_classes=0,
        ).eval()
        for count in _counts(heads)
    }


def _counts(most: int) -> list[int]:
    """1, 2, 4, … and all."""
    return sorted({most, *(2**power for power in range(most.bit_length()))})


def _seconds(
    calls: Calls, example: Tensor, threads: int, progress: Progress, protocol: Mapping[str, Any]
) -> dict[tuple[str, int], float]:
    by_name = {_words(mode, count): call for (mode, count), call in calls.items()}
    timed = measure_latencies(by_name, lambda: example, threads=threads, progress=progress, **{**PROTOCOL, **protocol})
    return {key: timed[_words(*key)].seconds for key in calls}


def _words(mode: str, count: int) -> str:
    return f"{mode} {count}" if count else f"{mode} alone"
