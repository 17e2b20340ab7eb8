"""The plan of a ViT split by classes: how small its sub-models become, who holds which, and how soon they answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from anyvit.scaling.spread.boards import Board, Fleet
from anyvit.scaling.spread.classes import Groups
from anyvit.scaling.spread.family import Family
from anyvit.scaling.spread.fusion import hidden_width
from anyvit.scaling.spread.placement import Room, place_with_heads
from anyvit.scaling.spread.plan import Plan, Share
from anyvit.scaling.spread.planner import network_s, refuse_hub, refuse_strange_tables, seconds_of
from anyvit.scaling.spread.sizes import FLOAT, Size


@dataclass(frozen=True)
class ClassPlan:
    """Sub-models and where they go.

    Attributes:
        heads: By sub-model, the heads that it keeps.
        sizes: By sub-model, what it needs.
        boards: By sub-model, the place of its board in the fleet.
        plan: What is predicted.
    """

    heads: tuple[int, ...]
    sizes: tuple[Size, ...]
    boards: tuple[int, ...]
    plan: Plan


def plan_classes(
    family: Family,
    groups: Groups,
    fleet: Fleet,
    macs_per_s: float,
    *,
    other_class: bool = True,
    removed: int = 0,
    per_model: bool = False,
    one_per_board: bool = False,
    objective: str = "energy",
    total: float = math.inf,
    compute: Sequence[float] | None = None,
) -> ClassPlan:
    """Place one sub-model a group of classes, all with as many heads as find room.

    Args:
        family: The sizes that sub-models can have.
        groups: The classes of each.
        fleet: The boards, and the hub that fuses.
        macs_per_s: Multiply-accumulates a second of a board of speed 1, where no cost table says more.
        other_class: Sub-models have an output more, for all other classes.
        removed: Heads that are removed in any case.
        per_model: Remove heads only of a sub-model that finds no board. Otherwise all keep the same number.
        one_per_board: No board takes a second sub-model.
        objective: "energy" or "latency"; see `placement.Room`.
        total: Bytes of weights of all sub-models together, at most.
        compute: By board, the multiply-accumulates of an image that it may spend at most. None: any.

    Raises:
        SpreadError: Not even sub-models of one head fit, or the hub cannot hold its piece.
        SettingError: A setting outside its range, or a cost table of another model.
    """
    boards = fleet.boards
    whole = family.size(family.num_heads, family.num_classes).macs
    refuse_strange_tables(fleet, whole)
    size = cache(family.size)

    def need(index: int, heads: int) -> Size:
        return size(heads, len(groups[index]) + other_class)

    room = Room(
        names=[board.name for board in boards],
        memory=[board.memory for board in boards],
        compute=compute or [math.inf] * len(boards),
        speed=[
            whole / seconds_of(board, whole, macs_per_s, lambda table: table.part_s("heads", family.num_heads))
            for board in boards
        ],
        one_per_device=one_per_board,
        objective=objective,
    )
    heads, found = place_with_heads(
        need, len(groups), family.num_heads, room, removed=removed, per_model=per_model, total=total
    )
    sizes = tuple(need(index, kept) for index, kept in enumerate(heads))
    hub = _fusion_size(sum(family.width(kept) for kept in heads), family.num_classes)
    refuse_hub(fleet.hub, hub.memory, "for the fusion of all answers")
    shares = _shares(family, groups, fleet, macs_per_s, heads, sizes, found.devices)
    return ClassPlan(
        heads, sizes, found.devices, Plan.of("classes", "boards", shares, hub.macs / (macs_per_s * fleet.hub.speed))
    )


def _shares(
    family: Family,
    groups: Groups,
    fleet: Fleet,
    macs_per_s: float,
    heads: Sequence[int],
    sizes: Sequence[Size],
    devices: Sequence[int],
) -> list[Share]:
    by_board: dict[int, list[int]] = {}
    for index, place in enumerate(devices):
        by_board.setdefault(place, []).append(index)
    shares = []
    for place, own in sorted(by_board.items()):
        board = fleet.boards[place]
        bytes_out = sum(FLOAT * family.width(heads[index]) for index in own)
        seconds = [_seconds(board, sizes[index], heads[index], macs_per_s) for index in own]
        shares.append(
            Share(
                board=board,
                groups=tuple(each for index in own for each in groups[index]),
                memory=sum(sizes[index].memory for index in own),
                bytes_in=family.bytes_in,
                bytes_out=bytes_out,
                compute_s=sum(seconds),
                network_s=network_s(board, family.bytes_in, bytes_out),
                submodels=tuple(own),
            )
        )
    return shares


def _seconds(board: Board, size: Size, heads: int, macs_per_s: float) -> float:
    return seconds_of(board, size.macs, macs_per_s, lambda table: table.part_s("heads", heads))


def _fusion_size(width: int, num_classes: int) -> Size:
    hidden = hidden_width(width)
    macs = width * hidden + hidden * num_classes
    params = macs + hidden + num_classes
    return Size(params, macs, FLOAT * params, FLOAT * (width + 2 * hidden + num_classes))
