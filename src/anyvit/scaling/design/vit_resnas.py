"""The search for the best network of a ViT-ResNAS super-network inside a band of cost (arXiv 2109.00642).

Differs: every repetition is bounded; a child is given up after `Plan.attempts` proposals, not 100
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyvit.models.vit_resnas_layout import NetworkDef, macs
from anyvit.models.vit_resnas_space import Space, sizes
from anyvit.models.vit_resnas_super import ViTResNASSuper
from anyvit.scaling.design.supernet import Band, Plan
from anyvit.training.batch_norm import recalibrate

PLAN = Plan(population=500, generations=19, parents=75, mutants=75, children=75)
"""The published one."""

_LOWEST = 0.975  # of a limit: a smaller network leaves accuracy on the table
_WIDE_DRAWS = 1000  # of widths and blocks, until a network is large enough to be pruned
_BLOCK_PRUNINGS = 100  # of heads and hidden units alone, before widths and blocks may go too
_PRUNINGS = 10_000


def band_below(limit: int, img_size: int = 224, *, strict_reference: bool = False) -> Band[NetworkDef]:
    """Networks of at most `limit` multiply-accumulates, and hardly fewer; see `vit_resnas_layout.macs`."""

    def cost(network_def: NetworkDef) -> int:
        return macs(network_def, img_size, strict_reference=strict_reference)

    return Band(cost, _LOWEST * limit, limit)


class ResNASGenes:
    """How the networks of a super-network are drawn and varied, draw by draw as the reference does.

    Args:
        network_def: Of the super-network.
        space: The widths of its entries.
        seed: Of NumPy's legacy generator: the reference's seeds give its networks.
        rate: How often a gene mutates.
    """

    def __init__(self, network_def: NetworkDef, space: Space, *, seed: int = 0, rate: float = 0.3) -> None:
        self.network_def = network_def
        self.space = space
        self.rate = rate
        self._random = np.random.RandomState(seed)
        self._has_blocks = any(entry[0] == 1 for entry in network_def)
        least = [
            {name: min(getattr(choices, name) or (size,)) for name, size in gene.items()}
            for gene, choices in zip(genes_of(network_def), space, strict=True)
        ]
        self._smallest = self.network_of(least)

    def draw(self, band: Band[NetworkDef]) -> NetworkDef:
        """A network with random widths and blocks, at least as large as the band; then pruned at random down to it.

        It may lie outside the band: where nothing can lie inside, it is the smallest or the largest network.
        """
        if band.cost(self._smallest) > band.high:
            return self._smallest
        network_def = self._wide(band)
        for pruned in range(_PRUNINGS):
            if band.cost(network_def) <= band.high:
                break
            network_def = self._pruned(network_def, blocks_only=self._has_blocks and pruned < _BLOCK_PRUNINGS)
        return network_def

    def _wide(self, band: Band[NetworkDef]) -> NetworkDef:
        """Random widths and blocks, and all heads and hidden units; the largest network where that is too small."""
        if band.cost(self.network_def) < band.low:
            return self.network_def
        for _ in range(_WIDE_DRAWS):
            genes = genes_of(self.network_def)
            for gene, choices in zip(genes, self.space, strict=True):
                if choices.width:
                    gene["width"] = self._choose(choices.width)
                if choices.layer:
                    gene["layer"] = self._choose(choices.layer)
            network_def = self.network_of(genes)
            if band.cost(network_def) >= band.low:
                return network_def
        return self.network_def

    def _pruned(self, network_def: NetworkDef, *, blocks_only: bool) -> NetworkDef:
        """One gene of one entry a step smaller, if it can be."""
        entries, genes = len(network_def) - 1, genes_of(network_def)  # not the head
        place = int(self._random.randint(int(blocks_only), entries))
        while blocks_only and network_def[place][0] != 1:  # there is one
            place = int(self._random.randint(1, entries))
        gene, choices = genes[place], self.space[place]
        names = ["width"]
        if network_def[place][0] == 1:
            names = ["attn", "mlp", "layer"] if choices.layer and not blocks_only else ["attn", "mlp"]
        name = names[int(self._random.randint(0, len(names)))] if len(names) > 1 else names[0]
        if name == "layer":
            gene[name] = min(gene[name], self._choose(choices.layer))
        else:
            gene[name] = max((size for size in getattr(choices, name) if size < gene[name]), default=gene[name])
        return self.network_of(genes)

    def mutate(self, parent: NetworkDef) -> NetworkDef:
        """Each gene drawn anew at the rate; a block that may go does, or comes back."""
        genes = genes_of(parent)
        for gene, choices in zip(genes, self.space, strict=True):
            for name in gene:
                if (sizes := getattr(choices, name)) and self._random.uniform() <= self.rate:
                    gene[name] = int(not gene[name]) if name == "layer" else self._choose(sizes)
        return self.network_of(genes)

    def cross(self, mother: NetworkDef, father: NetworkDef) -> NetworkDef:
        """Each gene from either, with the same chance."""
        genes = genes_of(mother)
        for gene, other in zip(genes, genes_of(father), strict=True):
            for name in gene:
                if self._random.uniform() <= 0.5:
                    gene[name] = other[name]
        return self.network_of(genes)

    def _choose(self, sizes: Sequence[int]) -> int:
        return int(self._random.choice(sizes))

    def network_of(self, genes: Sequence[Mapping[str, int]]) -> NetworkDef:
        """Widths carried from entry to entry; an absent block takes along the next ones of its stage that may go."""
        found: list[tuple[Any, ...]] = []
        width, absent = 0, False
        for entry, gene, choices in zip(self.network_def, genes, self.space, strict=True):
            match entry:
                case (0 | 4 | 5 as kind, _, *mid):
                    found.append((kind, gene["width"], *mid))
                case (3, _, _):
                    wide_enough = [
                        size for size in choices.width if size >= width
                    ]  # it cannot give fewer than it takes
                    gene = {"width": max(gene["width"], min(wide_enough, default=0))}
                    found.append((3, width, gene["width"]))
                case (1, (_, _, head_dim), _, _):
                    absent = bool(choices.layer) and (absent or not gene["layer"])
                    heads, exists = gene["attn"] // head_dim, gene["layer"] and not absent
                    found.append((1, (width, heads, head_dim), (width, gene["mlp"]), int(bool(exists))))
                case (2, _, num_classes):
                    found.append((2, width, num_classes))
            if "width" in gene:
                width, absent = gene["width"], False
        return tuple(found)


def genes_of(network_def: NetworkDef) -> list[dict[str, int]]:
    """Of each entry, what may be varied, by the names of `Choices`; `layer` is 0 where a block is absent."""
    return [sizes(entry) for entry in network_def]


@torch.no_grad()
def accuracy_of(
    supernet: ViTResNASSuper,
    network_def: NetworkDef,
    batches: Iterable[tuple[Tensor, Tensor]],
    calibration: Iterable[Tensor] = (),
) -> float:
    """The share of images that a subnetwork, cut out, answers right.

    Args:
        supernet: It is left as it is.
        network_def: Of the subnetwork.
        batches: Images (B, C, S, S) and labels (B,).
        calibration: Batches of training images for the statistics of its BatchNorms. None: the super-network's, as in
            the reference.
    """
    model = supernet.extract(network_def).eval()
    if calibration := list(calibration):
        recalibrate(model, calibration)
    right = count = 0
    for images, labels in batches:
        right += int((model(images).argmax(1) == labels).sum())
        count += len(labels)
    return right / count
