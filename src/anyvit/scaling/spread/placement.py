"""Which device takes which sub-model, and how many heads each sub-model can keep so that all find room.

Greedy, as ED-ViT places (arXiv 2410.11650): the most work first, onto the device with the most left to give. Where one
finds no room, heads are removed and sizes follow in closed form; pruning, which is dear, is done once, afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

import numpy as np

from anyvit.costs.budget import format_cost
from anyvit.errors import SettingError, SpreadError, unknown
from anyvit.scaling.spread.sizes import Size

OBJECTIVES = ("energy", "latency")
"""What greedy placement looks at: what a device has left, or when it would be done."""


@dataclass(frozen=True)
class Room:
    """What devices can give, one entry a device.

    Attributes:
        names: For messages.
        memory: Bytes.
        compute: Multiply-accumulates an image, at most: a budget of energy or time.
        speed: Multiply-accumulates a second; the objective "latency" looks at it.
        one_per_device: No device takes a second sub-model.
        objective: "energy": to the device with the most compute left, then the most memory. "latency": to the device
            that would be done first with all it has, so the largest goes to the fastest free one.

    Raises:
        SettingError: No device, an unknown objective, or entries that do not match.
    """

    names: Sequence[str]
    memory: Sequence[float]
    compute: Sequence[float]
    speed: Sequence[float] = ()
    one_per_device: bool = field(default=False, kw_only=True)
    objective: str = field(default="energy", kw_only=True)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise SettingError(unknown("objective", self.objective, OBJECTIVES))
        lengths = {len(self.names), len(self.memory), len(self.compute)}
        if lengths != {len(self.speed) or len(self.names)} or not self.names:
            raise SettingError(f"each of at least one device needs memory, compute and speed: got {sorted(lengths)}")
        if self.objective == "latency" and not self.speed:
            raise SettingError("the objective 'latency' needs the speed of each device")


@dataclass(frozen=True, slots=True)
class Placement:
    """The device of each sub-model; empty where `failed` names the first that found none."""

    devices: tuple[int, ...]
    failed: int | None = None
    free: tuple[float, float] = (math.inf, math.inf)  # where one failed: the most memory, the most compute left


def place(needs: Sequence[Size], room: Room) -> Placement:
    """Place sub-models by what they need, the most MACs first, of equal ones the first."""
    return _placed(list(needs), room, lambda index: None)


def place_with_heads(
    need: Callable[[int, int], Size],
    submodels: int,
    num_heads: int,
    room: Room,
    *,
    removed: int = 0,
    per_model: bool = False,
    total: float = math.inf,
) -> tuple[tuple[int, ...], Placement]:
    """Place sub-models that keep as many heads as can be.

    Args:
        need: What a sub-model, by its index, needs with so many heads. With fewer heads it needs less.
        submodels: How many there are.
        num_heads: Of the whole model.
        room: What the devices can give.
        removed: Heads that are removed in any case.
        per_model: Remove heads only of a sub-model that finds no device. Otherwise all keep the same number.
        total: Bytes of weights of all together, at most.

    Returns:
        The heads that each sub-model keeps, and where it goes.

    Raises:
        SpreadError: Even with one head a sub-model finds no device, or all are larger than `total`.
        SettingError: `removed` leaves no head.
    """
    if not 0 <= removed < num_heads:
        raise SettingError(f"heads to remove must be from 0 to {num_heads - 1}, so that one stays: got {removed}")
    heads = [num_heads - removed] * submodels
    _shrink_to(total, heads, need, per_model=per_model)

    def smaller(index: int) -> Size | None:
        heads[index] -= 1
        return need(index, heads[index]) if heads[index] else None

    while True:
        needs = [need(index, kept) for index, kept in enumerate(heads)]
        found = _placed(needs, room, smaller if per_model else lambda index: None)
        if found.failed is None:
            return tuple(heads), found
        if per_model or heads[0] == 1:
            raise SpreadError(_no_room(found, need(found.failed, 1), room))
        heads = [kept - 1 for kept in heads]


def _shrink_to(total: float, heads: list[int], need: Callable[[int, int], Size], *, per_model: bool) -> None:
    """Remove heads, of the largest sub-model or of all, until the weights of all are within `total`."""
    weights = [need(index, kept).weights for index, kept in enumerate(heads)]
    while sum(weights) > total:
        chosen = [weights.index(max(weights))] if per_model else range(len(heads))
        if any(heads[index] == 1 for index in chosen):
            raise SpreadError(
                f"all {len(heads)} sub-models together need {_bytes(sum(weights))} of weights and may have "
                f"{_bytes(total)}: sub-model {weights.index(max(weights))}, the largest, has one head left. "
                "Allow more, or make fewer sub-models."
            )
        for index in chosen:
            heads[index] -= 1
            weights[index] = need(index, heads[index]).weights


def _placed(needs: list[Size], room: Room, smaller: Callable[[int], Size | None]) -> Placement:
    """The greedy placement. What finds no room is tried again as `smaller` makes it, in its new place of the order.

    To start anew with the smaller one would end the same: what was placed before it had more work and stays first.
    """
    free = _Free(room)
    devices = [-1] * len(needs)
    order = [(-size.macs, index) for index, size in enumerate(needs)]
    heapify(order)
    while order:
        _, index = heappop(order)
        device = free.take(needs[index])
        if device is not None:
            devices[index] = device
            continue
        size = smaller(index)
        if size is None:
            return Placement((), index, (float(free.memory.max()), float(free.compute.max())))
        needs[index] = size
        heappush(order, (-size.macs, index))
    return Placement(tuple(devices))


class _Free:
    """What the devices have left."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.memory = np.array(room.memory, dtype=float)
        self.compute = np.array(room.compute, dtype=float)
        self.speed = np.array(room.speed or [1.0] * len(room.names), dtype=float)
        self.load = np.zeros(len(room.names))

    def take(self, size: Size) -> int | None:
        """The device that takes a sub-model, if there is one; it has less to give from now on."""
        able = np.flatnonzero((self.memory >= size.memory) & (self.compute >= size.macs))
        if not len(able):
            return None
        done = (self.load[able] + size.macs) / self.speed[able]
        first = done if self.room.objective == "latency" else -self.compute[able]
        device = int(able[np.lexsort((-self.memory[able], first))[0]])
        self.load[device] += size.macs
        self.memory[device] -= size.memory
        self.compute[device] -= size.macs
        if self.room.one_per_device:
            self.memory[device] = self.compute[device] = -math.inf
        return device


def _no_room(found: Placement, size: Size, room: Room) -> str:
    memory, compute = found.free
    left = (
        "every device has its one sub-model"
        if memory == -math.inf
        else f"the most that one device has left is {_bytes(memory)} and {_macs(compute)}"
    )
    return (
        f"sub-model {found.failed} finds no device: with one head it needs {_bytes(size.memory)} and "
        f"{_macs(size.macs)} an image, and {left}. Add to the {len(room.names)} devices, or give them more room."
    )


def _bytes(count: float) -> str:
    return format_cost("memory", count)


def _macs(count: float) -> str:
    return "any number of MACs" if math.isinf(count) else f"{format_cost('macs', count)} MACs"
