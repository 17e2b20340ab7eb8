"""How well n devices are used by three ways to share a model, as formulas and simulated step by step.

Model parallelism ("model"): n consecutive pieces, one image after the other. Pipeline parallelism ("pipeline"): the
same pieces, a batch of m micro-batches on their way at once. HSViT ("hub", "boards"): the trunk on one of the devices
or on all, the attention groups side by side. Utilisation is the time of one device that does all, over the time that
n devices take together.

The simulation takes an image for a micro-batch, and empties the pipeline after each batch, as training does. Pieces are
taken as even, and what goes between them as no more than the tokens: both favour the first two ways.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

from anyvit.errors import SettingError, unknown
from anyvit.scaling.spread.boards import CostTable
from anyvit.scaling.spread.sizes import HSViTShape


def utilisation_of_model(devices: int) -> float:
    """One of n pieces works at a time."""
    return 1 / devices


def utilisation_of_pipeline(devices: int, batch: int) -> float:
    """The pipeline of n pieces fills and empties once in a batch of m."""
    return batch / (batch + devices - 1)


def utilisation_of_hsvit(devices: int, trunk_s: float, attention_s: float) -> float:
    """All wait for the trunk, or repeat it, then share the attention of all groups evenly."""
    return (trunk_s + attention_s) / (devices * (trunk_s + attention_s / devices))


@dataclass(frozen=True, slots=True)
class Link:
    """Between two devices: bytes a second in each direction, and seconds on the way whatever the size."""

    bandwidth: float = math.inf
    latency: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulated batch came to."""

    throughput: float  # images a second
    utilisation: float


def simulate(
    scheme: str, devices: int, shape: HSViTShape, table: CostTable, link: Link | None = None, *, batch: int = 32
) -> Outcome:
    """Run a batch of images through a scheme, on devices that are all as fast as the one that was measured.

    Args:
        scheme: A key of `SCHEMES`.
        devices: n.
        shape: The HSViT. Its groups are dealt evenly; devices beyond their number are idle.
        table: What its parts take.
        link: Each of the links there are; they work at once. None: data arrive as soon as they leave.
        batch: m, the images of a batch.

    Raises:
        SettingError: An unknown scheme, or a number below 1.
    """
    if scheme not in SCHEMES:
        raise SettingError(unknown("scheme", scheme, SCHEMES))
    if devices < 1 or batch < 1:
        raise SettingError(f"devices {devices} and batch {batch} must be at least 1")
    run = _Run(shape, table, link or Link(), devices)
    end = SCHEMES[scheme](run, batch)
    return Outcome(batch / end, batch * run.whole_s / (devices * end))


@dataclass
class _Run:
    """Devices and links that each do one thing at a time, in the order in which it is given to them."""

    shape: HSViTShape
    table: CostTable
    link: Link
    devices: int
    free: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def whole_s(self) -> float:
        """Seconds of an image on one device that does all."""
        return self.table.hub_s["hub"] + self.table.part_s("hub", self.shape.num_groups)

    def shares(self) -> list[int]:
        """The groups of each device that has any."""
        least, larger = divmod(self.shape.num_groups, self.devices)
        counts = [least + (place < larger) for place in range(self.devices)]
        return [count for count in counts if count]

    def work(self, device: str, seconds: float, after: float) -> float:
        """When work that may begin at `after` is done."""
        self.free[device] = max(self.free[device], after) + seconds
        return self.free[device]

    def send(self, link: str, payload: int, after: float) -> float:
        """When what leaves at `after` has arrived."""
        return self.work(link, payload / self.link.bandwidth, after) + self.link.latency


def _pieces(run: _Run, after: float) -> float:
    """An image through the n pieces, the first of which may begin at `after`."""
    payload = run.shape.bytes_in(run.shape.num_groups, "hub")
    for place in range(run.devices):
        if place:
            after = run.send(f"link {place}", payload, after)
        after = run.work(f"device {place}", run.whole_s / run.devices, after)
    return after


def _model(run: _Run, batch: int) -> float:
    end = 0.0
    for _ in range(batch):
        end = _pieces(run, end)
    return end


def _pipeline(run: _Run, batch: int) -> float:
    return max(_pieces(run, 0.0) for _ in range(batch))


def _hsvit_on_hub(run: _Run, batch: int) -> float:
    """The first device has the trunk, the head and groups; it begins the next image when its own part is done."""
    seconds = {count: run.table.part_s("hub", count) for count in set(run.shares())}
    end = 0.0
    for _ in range(batch):
        tokens = run.work("device 0", run.table.hub_s["hub"], 0.0)
        for place, count in enumerate(run.shares()):
            arrived = run.send(f"to {place}", run.shape.bytes_in(count, "hub"), tokens) if place else tokens
            done = run.work(f"device {place}", seconds[count], arrived)
            end = max(end, run.send(f"from {place}", run.shape.bytes_out(count), done) if place else done)
    return end


def _hsvit_on_boards(run: _Run, batch: int) -> float:
    """Every device has the trunk; the picture is on the first one, which also votes."""
    seconds = {count: run.table.part_s("boards", count) for count in set(run.shares())}
    end = 0.0
    for _ in range(batch):
        votes = 0.0
        for place, count in enumerate(run.shares()):
            arrived = run.send(f"to {place}", run.shape.bytes_in(count, "boards"), 0.0) if place else 0.0
            done = run.work(f"device {place}", seconds[count], arrived)
            votes = max(votes, run.send(f"from {place}", run.shape.bytes_out(count), done) if place else done)
        end = run.work("vote", run.table.hub_s["boards"], votes)
    return end


SCHEMES = {"model": _model, "pipeline": _pipeline, "hub": _hsvit_on_hub, "boards": _hsvit_on_boards}
"""Ways to share a model, by name; each gives the seconds of a batch."""
