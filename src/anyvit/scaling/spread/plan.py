"""Who holds what: a placement of one model on many boards, and what it is predicted to cost.

The latency of an image is the hub's own time and that of the slowest board: its picture or tokens on the way there, its
work, its answer back. Images that follow each other overlap: what is busy longest with each bounds throughput.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from anyvit.costs.budget import format_cost
from anyvit.scaling.spread.boards import Board

COLUMNS = ("board", "address", "holds", "memory", "in", "out", "compute", "network", "total")
"""What the rows of `Plan.table` say."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one board takes.

    Attributes:
        board: Which one.
        groups: The attention groups it holds; by classes, the classes of its sub-models, one sub-model after the other.
        memory: Bytes that it needs: weights and activations.
        bytes_in: Payload of an image on its way there.
        bytes_out: Payload of its answer.
        compute_s: Seconds of its work on an image.
        network_s: Seconds of an image on the way, there and back.
        submodels: By classes, which sub-models.
    """

    board: Board
    groups: tuple[int, ...]
    memory: int
    bytes_in: int
    bytes_out: int
    compute_s: float
    network_s: float
    submodels: tuple[int, ...] = ()

    @property
    def total_s(self) -> float:
        """Seconds from the hub's question to its answer."""
        return self.compute_s + self.network_s

    @property
    def link_s(self) -> float:
        """Seconds for which an image keeps its link busy; both directions work at once."""
        return max(self.bytes_in, self.bytes_out) / self.board.bandwidth

    def to_json(self) -> dict[str, Any]:
        return {**asdict(replace(self, board=None)), "board": self.board.to_json()}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Share:
        lists = {name: tuple(data[name]) for name in ("groups", "submodels")}
        return cls(**{**data, **lists, "board": Board.from_json(data["board"])})


@dataclass(frozen=True)
class Plan:
    """A placement, and what it is predicted to cost.

    Attributes:
        by: "groups" of an HSViT, or "classes": sub-models of a plain ViT.
        trunk: Where the convolutions are: on the "hub" or on the "boards".
        shares: What each board takes, of those that take anything.
        hub_s: Seconds of the hub's own work on an image.
        latency_s: Seconds of an image, from the preprocessed picture to the answer.
        bottleneck: What most of that goes to: the "hub", a board, or the "link to" it.
        throughput: Images a second where they follow each other.
    """

    by: str
    trunk: str
    shares: tuple[Share, ...]
    hub_s: float
    latency_s: float
    bottleneck: str
    throughput: float

    @classmethod
    def of(cls, by: str, trunk: str, shares: Sequence[Share], hub_s: float) -> Plan:
        """The plan of these shares, with its predictions."""
        slowest = max(shares, key=lambda share: share.total_s)
        name = slowest.board.name
        waits = {"hub": hub_s, name: slowest.compute_s, f"link to {name}": slowest.network_s}
        busiest = max(hub_s, *(max(share.compute_s, share.link_s) for share in shares))
        return cls(
            by=by,
            trunk=trunk,
            shares=tuple(shares),
            hub_s=hub_s,
            latency_s=hub_s + slowest.total_s,
            bottleneck=max(waits, key=lambda each: waits[each]),
            throughput=1 / busiest,
        )

    @property
    def bytes_on_wire(self) -> int:
        """Payload of an image, all boards together, both ways."""
        return sum(share.bytes_in + share.bytes_out for share in self.shares)

    def table(self) -> list[tuple[str, ...]]:
        """A row a board, in the columns of `COLUMNS`, as people read them."""
        return [_row(share) for share in self.shares]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "shares": [share.to_json() for share in self.shares]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        return cls(**{**data, "shares": tuple(Share.from_json(share) for share in data["shares"])})


def _row(share: Share) -> tuple[str, ...]:
    board = share.board
    memory = format_cost("memory", share.memory)
    return (
        board.name,
        board.address or "-",
        ranges(share.groups),
        memory if math.isinf(board.memory) else f"{memory} of {format_cost('memory', board.memory)}",
        format_cost("memory", share.bytes_in),
        format_cost("memory", share.bytes_out),
        *(format_cost("latency", seconds) for seconds in (share.compute_s, share.network_s, share.total_s)),
    )


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in the fewest words: `0-3, 7`."""
    breaks = [place for place, (a, b) in enumerate(pairwise(numbers), start=1) if b != a + 1]
    runs = [numbers[start:end] for start, end in pairwise([0, *breaks, len(numbers)])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs if run)
