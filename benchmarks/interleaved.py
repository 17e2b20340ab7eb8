"""What the speed benchmarks share: sides timed in turn, ratios with their spread, results with their machine.

Everything else on a machine adds time now to one side, now to the other. So the sides take turns, a ratio is taken
within each turn, and of all ratios the median counts. Where a model lies in memory changes its speed too, so the sides
are built anew several times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from anyvit.costs.device import this_device
from anyvit.costs.pinning import pinned
from anyvit.costs.summary import summarize
from anyvit.models import PRESETS

Sides = Mapping[str, Callable[[], object]]
"""What is compared: calls by name."""


@dataclass(frozen=True)
class Effort:
    """How much is timed: how often the sides are built anew, turns a building, and seconds of a side in a turn."""

    buildings: int = 3
    turns: int = 4
    seconds: float = 0.1

    @classmethod
    def asked(cls, description: str | None) -> tuple[Effort, bool]:
        """What the command line asks for; with `--quick` a glance, of which nothing shall be written."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="a glance that only shows that it runs")
        quick = parser.parse_args().quick
        torch.set_num_threads(1)
        return (cls(1, 2, 0.01) if quick else cls()), quick


@dataclass(frozen=True)
class Spread:
    """The median of the turns with its approximate 95 % interval, and the smallest and largest."""

    median: float
    low: float
    high: float
    smallest: float
    largest: float
    turns: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        summary = summarize(values)
        return cls(summary.median, summary.ci_low, summary.ci_high, min(values), max(values), len(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} (95% interval {self.low:.3f} to {self.high:.3f}, {self.turns} turns)"

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def times(build: Callable[[], Sides], effort: Effort) -> dict[str, list[float]]:
    """Seconds of a call of each side, one figure a turn; the same places in two lists are the same turn.

    One thread, one core. Every other turn goes through the sides backwards.
    """
    series: dict[str, list[float]] = {}
    with pinned(1):
        for _ in range(effort.buildings):
            sides = build()
            for call in sides.values():
                call()
            for turn in range(effort.turns):
                for name in list(sides)[:: -1 if turn % 2 else 1]:
                    series.setdefault(name, []).append(median(_calls(sides[name], effort.seconds)))
    return series


def _calls(call: Callable[[], object], seconds: float) -> Iterator[float]:
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        call()
        yield time.perf_counter() - begun


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """`above` over `below`, turn by turn."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def plain_vit(preset: str, heads: int) -> VisionTransformer:
    """timm's ViT of the shape that a subnetwork of a preset has, made by timm alone."""
    shape = PRESETS[preset]
    return VisionTransformer(
        img_size=shape.image_size,
        patch_size=shape.patch_size,
        embed_dim=heads * shape.head_dim,
        depth=shape.depth,
        num_heads=heads,
    ).eval()


def images(preset: str, batch: int) -> torch.Tensor:
    """A fixed batch (B, 3, S, S) for a preset."""
    size = PRESETS[preset].image_size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def write_result(name: str, result: Mapping[str, Any], *, quick: bool = False) -> None:
    """Keep a result beside the others, with the machine that it belongs to."""
    device = this_device()
    whole = {
        "machine": f"{device}; threads {torch.get_num_threads()}",
        "features": device.features,
        "quick": quick,
        **result,
    }
    if quick:
        print("a glance: nothing is written")
        return
    file = Path(__file__).parent / "results" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(whole, indent=2, default=lambda value: value.to_json()) + "\n")
    print(f"written: {file}")
