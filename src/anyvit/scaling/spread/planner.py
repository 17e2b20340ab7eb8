"""Deals the attention groups of an HSViT to boards so that an image is answered soonest, within everyone's memory.

Letters: G groups
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush

from anyvit.costs.budget import format_cost
from anyvit.errors import SettingError, SpreadError, unknown
from anyvit.scaling.spread.boards import Board, CostTable, Fleet
from anyvit.scaling.spread.plan import Plan, Share
from anyvit.scaling.spread.sizes import HSViTShape

TRUNKS = ("hub", "boards")
"""Where the convolutions may be: once, on the hub, which sends tokens; or on every board, to which the picture goes."""

SAME_MODEL = 0.05
"""Share by which the MACs of a model may differ from those of a cost table that is used for it."""


def plan_groups(shape: HSViTShape, fleet: Fleet, macs_per_s: float, *, trunk: str = "auto") -> Plan:
    """The deal of all groups with the smallest latency that there is; boards may get none.

    Args:
        shape: The model.
        fleet: The boards, and the hub.
        macs_per_s: Multiply-accumulates a second of a board of speed 1, where no cost table says more.
        trunk: "hub", "boards", or "auto": whichever answers sooner.

    Raises:
        SettingError: An unknown `trunk`, a model without groups, or a cost table of another model.
        SpreadError: The boards cannot hold the model; the message names them and how much they lack.
    """
    if trunk not in (*TRUNKS, "auto"):
        raise SettingError(unknown("trunk", trunk, (*TRUNKS, "auto")))
    if not shape.num_groups:
        raise SettingError("a model without attention groups (num_groups 0) cannot be spread by groups.")
    refuse_strange_tables(fleet, shape.whole().macs)
    plans, refusals = [], []
    for where in TRUNKS if trunk == "auto" else (trunk,):
        try:
            plans.append(_plan(shape, fleet, macs_per_s, where))
        except SpreadError as refusal:
            refusals.append(str(refusal))
    if not plans:
        raise SpreadError(" ".join(refusals))
    return min(plans, key=lambda plan: plan.latency_s)


def _plan(shape: HSViTShape, fleet: Fleet, macs_per_s: float, trunk: str) -> Plan:
    G = shape.num_groups
    parts = [shape.board(count, trunk) for count in range(G + 1)]
    own = shape.hub(trunk)
    refuse_hub(fleet.hub, own.memory, f"with the trunk on the {trunk}")
    room = [bisect_right(parts, board.memory, lo=1, key=lambda part: part.memory) - 1 for board in fleet.boards]
    if sum(room) < G:
        raise SpreadError(_lacking(fleet.boards, room, [part.memory for part in parts], trunk))

    def share(board: Board, groups: Sequence[int]) -> Share:
        count = len(groups)
        bytes_in, bytes_out = shape.bytes_in(count, trunk), shape.bytes_out(count)
        return Share(
            board=board,
            groups=tuple(groups),
            memory=parts[count].memory,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            compute_s=seconds_of(board, parts[count].macs, macs_per_s, lambda table: table.part_s(trunk, count)),
            network_s=network_s(board, bytes_in, bytes_out),
        )

    counts = deal(G, room, lambda place, count: share(fleet.boards[place], range(count)).total_s)
    shares, first = [], 0
    for board, count in zip(fleet.boards, counts, strict=True):
        if count:
            shares.append(share(board, range(first, first + count)))
        first += count
    hub_s = seconds_of(fleet.hub, own.macs, macs_per_s, lambda table: table.hub_s[trunk])
    return Plan.of("groups", trunk, shares, hub_s)


def deal(groups: int, room: Sequence[int], seconds: Callable[[int, int], float]) -> list[int]:
    """How many groups each board takes so that the slowest takes as little time as possible; optimal.

    Each group goes where it will be answered soonest. A board's time never falls with more groups (a measured one that
    does is raised to the one before), so what is taken are the smallest of all times of all boards, and no deal has a
    smaller largest one.

    Args:
        groups: How many there are; the boards have room for them.
        room: The most each board can hold.
        seconds: The time of a board, by its place, with so many groups.
    """
    counts = [0] * len(room)
    next_times = [(seconds(place, 1), place) for place, most in enumerate(room) if most]
    heapify(next_times)
    for _ in range(groups):
        time, place = heappop(next_times)
        counts[place] += 1
        if counts[place] < room[place]:
            heappush(next_times, (max(time, seconds(place, counts[place] + 1)), place))
    return counts


def seconds_of(board: Board, macs: int, macs_per_s: float, measured: Callable[[CostTable], float]) -> float:
    """Seconds of a piece of work on a board: as measured there, or by its speed."""
    return measured(board.cost_table) if board.cost_table else macs / (macs_per_s * board.speed)


def network_s(board: Board, bytes_in: int, bytes_out: int) -> float:
    """Seconds that a question and its answer are on the way."""
    return (bytes_in + bytes_out) / board.bandwidth + 2 * board.latency


def refuse_strange_tables(fleet: Fleet, macs: int) -> None:
    """Refuse a cost table that another model was measured for.

    Raises:
        SettingError: There is one.
    """
    for board in (*fleet.boards, fleet.hub):
        table = board.cost_table
        if table and abs(table.macs - macs) > SAME_MODEL * macs:
            raise SettingError(
                f"{board.name}: its cost table is of {table.model}, of {format_cost('macs', table.macs)} MACs, and "
                f"this model has {format_cost('macs', macs)}: measure this one there."
            )


def refuse_hub(hub: Board, memory: int, what: str) -> None:
    """Refuse a hub that cannot hold its own piece.

    Raises:
        SpreadError: It cannot.
    """
    if memory > hub.memory:
        needs, gives, lacks = (_bytes(each) for each in (memory, hub.memory, memory - hub.memory))
        raise SpreadError(f"{what}, {hub.name} needs {needs} and gives {gives}: {lacks} too little.")


def _lacking(boards: Sequence[Board], room: Sequence[int], memory: Sequence[int], trunk: str) -> str:
    """Why all groups do not fit, board by board, and in all; `memory` is that of a part by its number of groups."""
    G = len(memory) - 1
    short = G - sum(room)
    lacks = [
        f"{board.name} ({_bytes(board.memory)}) holds {most} and lacks {_bytes(memory[most + 1] - board.memory)} for "
        f"{most + 1}"
        for board, most in zip(boards, room, strict=True)
    ]
    alone = [memory[most + short] - board.memory for board, most in zip(boards, room, strict=True)]
    least = min(alone)
    return (
        f"with the trunk on the {trunk}, {short} of {G} groups find no room: {first_few(lacks)}. At the least, give "
        f"{boards[alone.index(least)].name} {_bytes(least)} more, or add boards."
    )


def first_few(words: Iterable[str], most: int = 5) -> str:
    """The first of them, and how many more there are."""
    words = list(words)
    more = f"; and {len(words) - most} more boards" if len(words) > most else ""
    return "; ".join(words[:most]) + more


def _bytes(count: float) -> str:
    return format_cost("memory", count)
