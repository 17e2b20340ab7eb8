"""From a topology to a family: a network grows block by block and channel by channel, measured untrained as it goes.

As-ViT, arXiv 2202.11921, section 3.3. Measurements are taken of a network a quarter as wide as the one that is built.
Each step's network is a member of the family, and so is the one it starts with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyvit.errors import BudgetError
from anyvit.models.asvit_topology import Topology
from anyvit.protocols import Event, Progress, silent
from anyvit.scaling.design.supernet import Band
from anyvit.scaling.design.training_free import Measurement

WIDER = 4
"""How much wider the network is than the one that is measured."""

RATIOS = (0.05, 0.10, 0.15, 0.20)
"""How much wider a step may make it."""

START = 8
"""Channels of the first stage of the first network that is measured."""


@dataclass(frozen=True, slots=True)
class Member:
    """A network of the family.

    Args:
        probe: What was measured.
        cost: Of the network, in base units.
        measurement: Of the probe.
    """

    probe: Topology
    cost: float
    measurement: Measurement

    @property
    def topology(self) -> Topology:
        """What is built."""
        return built(self.probe)


@dataclass
class Family:
    """The members, the smallest first, each grown from the one before."""

    members: list[Member] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All that is needed to go on."""
        members = [
            {"probe": m.probe.to_string(), "cost": m.cost, "measurement": m.measurement.to_json()} for m in self.members
        ]
        return {"members": members}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Family:
        members = [
            Member(Topology.parse(m["probe"]), m["cost"], Measurement.from_json(m["measurement"]))
            for m in data["members"]
        ]
        return cls(members)


def built(probe: Topology) -> Topology:
    """The network that a probe stands for: four times as wide."""
    return probe.sized(probe.depths, WIDER * probe.hidden)


def larger(probe: Topology, ratios: Sequence[float] = RATIOS) -> list[Topology]:
    """The probes that one step may lead to: one block more in some stage, and another width."""
    widths: list[int] = []
    for ratio in ratios:
        width = round(probe.hidden * (1 + ratio))
        if width not in widths[-1:]:
            widths.append(width)
    depths = [tuple(d + (place == stage) for place, d in enumerate(probe.depths)) for stage in range(4)]
    return [probe.sized(depth, width) for depth in depths for width in widths]


def choose(measurements: Sequence[Measurement], *, strict_reference: bool = False) -> int:
    """The place of the best: that of the smallest sum of its ranks by condition and by length.

    Between the first two of equal sums that measurement decides which differs more over all.

    Args:
        measurements: Of at least one network.
        strict_reference: Decide between them as the reference does, for the smaller value, where length should be long.
    """
    criteria = [[-m.length for m in measurements]]  # the lower the better
    if measurements[0].condition is not None:
        criteria.insert(0, [math.inf if m.condition is None else m.condition for m in measurements])
    ranks = [[sorted(set(values)).index(value) for value in values] for values in criteria]
    sums = [sum(own) for own in zip(*ranks, strict=True)]
    first, *others = sorted(range(len(sums)), key=sums.__getitem__)
    if not others or sums[others[0]] > sums[first]:
        return first
    values = max(criteria, key=_relative_range)
    better = [abs(value) for value in values] if strict_reference else values
    return min(first, others[0], key=better.__getitem__)


def _relative_range(values: Sequence[float]) -> float:
    """(max - min) / max of the magnitudes that are finite."""
    finite = [abs(value) for value in values if math.isfinite(value)]
    return (max(finite) - min(finite)) / max(finite) if any(finite) else 0.0


def grow(
    topology: Topology,
    measure: Callable[[Topology], Measurement],
    band: Band[Topology],
    *,
    ratios: Sequence[float] = RATIOS,
    steps: int = 200,
    strict_reference: bool = False,
    known: Family | None = None,
    kept: Callable[[Family], None] = lambda family: None,
    progress: Progress = silent,
) -> Family:
    """Grow a topology until its network costs enough.

    Args:
        topology: Of which only kernels, splits, expansions and heads count: it starts with a block a stage.
        measure: Of an untrained probe; dear.
        band: Of what is built. What costs more than its end is no candidate; growth ends inside it, or where each
            step would lead beyond it.
        ratios: How much wider a step may make it.
        steps: At most, for costs that do not grow.
        strict_reference: See `choose`.
        known: An interrupted growth, to go on with.
        kept: Called after each step with all that is known, to be written.
        progress: Told how far it is.

    Returns:
        At least the network that growth starts from.

    Raises:
        BudgetError: That one is beyond the band.
    """
    family = Family([*known.members]) if known else Family([])
    while len(family.members) <= steps and not (family.members and family.members[-1].cost >= band.low):
        start = [topology.sized((1, 1, 1, 1), START)]
        probes = larger(family.members[-1].probe, ratios) if family.members else start
        candidates = [(probe, cost) for probe in probes if (cost := band.cost(built(probe))) <= band.high]
        if not candidates:
            break
        measurements = []
        for place, (probe, cost) in enumerate(candidates):
            where = f"step {len(family.members)}, network {place + 1} of {len(candidates)}"
            progress(Event("grow", where, min(1.0, cost / band.low) if band.low > 0 else None))
            measurements.append(measure(probe))
        best = choose(measurements, strict_reference=strict_reference)
        probe, cost = candidates[best]
        family.members.append(Member(probe, cost, measurements[best]))
        kept(family)
    if not family.members:
        least = band.cost(built(topology.sized((1, 1, 1, 1), START)))
        raise BudgetError(
            f"the smallest network to grow has {least:g} {band.name}, and at most {band.high:g} are asked for: "
            f"allow {least:g}"
        )
    return family
