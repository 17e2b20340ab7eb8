"""The boards that share a model, as `devices.yaml` describes them, and what was measured on them.

hub:
  memory: 2GB
devices:
  - name: pi-1
    address: 192.168.1.11:7002
    memory: 512MB
    speed: 0.1                # or cost_table: pi.json
    bandwidth: 10Mbit/s
    latency: 20ms
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from anyvit.costs.units import BYTES, TIME, plain, read_amount
from anyvit.errors import DataError, SettingError, unknown

_BIT_RATES = {
    plain(f"{size}bit/{unit}"): Fraction(bits, 8) / seconds
    for size, bits in (("", 1), ("k", 10**3), ("m", 10**6), ("g", 10**9))
    for unit, seconds in TIME.items()
} | {plain(f"{size}bps"): Fraction(bits, 8) for size, bits in (("", 1), ("k", 10**3), ("m", 10**6), ("g", 10**9))}
"""Bytes a second in a unit of bandwidth: bits alone, as networks are sold, lest Mb/s be taken for MB/s."""


@dataclass(frozen=True, slots=True)
class CostTable:
    """Seconds measured on one board, of one model; between two measured points time is taken as linear.

    Attributes:
        model: The model that was measured.
        macs: Multiply-accumulates of one image through the whole of it, by which another model is told from it.
        seconds: By mode ("hub" and "boards": where the trunk is; "heads": sub-models of a plain ViT), the seconds of
            a part with that many groups, or heads kept.
        hub_s: By where the trunk is, the seconds of an image that the hub itself needs.
        device: The fingerprint of the board.
    """

    model: str
    macs: int
    seconds: Mapping[str, Mapping[int, float]]
    hub_s: Mapping[str, float]
    device: str

    def part_s(self, mode: str, count: int) -> float:
        """The seconds of a part of `count` groups, or heads; beyond what was measured the last slope goes on.

        Raises:
            SettingError: Nothing was measured in that mode.
        """
        if not self.seconds.get(mode):
            raise SettingError(
                f"the cost table of {self.model} holds nothing for {mode!r}, only {', '.join(self.seconds)}: measure "
                "the model that is to be spread."
            )
        points = sorted(self.seconds[mode].items())
        if len(points) == 1:
            return points[0][1] * count / points[0][0]
        after = next((place for place, (x, _) in enumerate(points) if x >= count), len(points) - 1)
        (x0, y0), (x1, y1) = points[max(after, 1) - 1], points[max(after, 1)]
        return max(y0 + (y1 - y0) * (count - x0) / (x1 - x0), 0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "macs": self.macs,
            "device": self.device,
            "seconds": {mode: {str(n): s for n, s in by_count.items()} for mode, by_count in self.seconds.items()},
            "hub_s": dict(self.hub_s),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostTable:
        seconds = {
            mode: {int(count): float(value) for count, value in by_count.items()}
            for mode, by_count in data["seconds"].items()
        }
        hub_s = {trunk: float(value) for trunk, value in data["hub_s"].items()}
        return cls(str(data["model"]), int(data["macs"]), seconds, hub_s, str(data["device"]))

    @classmethod
    def load(cls, path: Path) -> CostTable:
        """Read what `anyvit measure MODEL --cost-table FILE` has written.

        Raises:
            DataError: The file is missing, or no cost table.
        """
        try:
            table = cls.from_json(json.loads(path.read_text(encoding="utf-8")))
            figures = [*table.hub_s.values(), *(s for by_count in table.seconds.values() for s in by_count.values())]
            if not all(math.isfinite(s) and s >= 0 for s in figures):
                raise ValueError("seconds must be finite and not below 0")
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}). {_HOW_TO_MEASURE}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is no cost table ({type(error).__name__}: {error}). {_HOW_TO_MEASURE}") from error
        return table


_HOW_TO_MEASURE = "`anyvit measure MODEL --cost-table FILE`, run on the board, writes one."


@dataclass(frozen=True, slots=True)
class Board:
    """A device that takes a part of a model.

    Attributes:
        name: By which messages and answers speak of it.
        address: Host and port of its worker.
        memory: Bytes it can give to its part: weights and activations, over what its runtime needs.
        speed: Relative to the machine that plans; a measured table, where there is one, says more.
        cost_table: What was measured on it.
        bandwidth: Bytes a second between it and the hub, in each direction.
        latency: Seconds that a message to or from it takes on the way, whatever its size.
    """

    name: str
    address: str = ""
    memory: float = math.inf
    speed: float = 1.0
    cost_table: CostTable | None = None
    bandwidth: float = math.inf
    latency: float = 0.0

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__slots__}
        unlimited = {name: None if math.isinf(plain[name]) else plain[name] for name in _LIMITS}
        return {**plain, **unlimited, "cost_table": self.cost_table and self.cost_table.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Board:
        limits = {name: math.inf if data[name] is None else float(data[name]) for name in _LIMITS}
        table = data["cost_table"]
        return cls(**{**data, **limits, "cost_table": table and CostTable.from_json(table)})


_LIMITS = ("memory", "bandwidth")
"""What has no end where it is not given; JSON says null."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The boards, and the hub that has the picture, asks them and votes."""

    boards: tuple[Board, ...]
    hub: Board = Board("hub")


def read_fleet(path: str | Path) -> Fleet:
    """Read `devices.yaml`. A cost table is found relative to it.

    Raises:
        DataError: The file cannot be read, is no YAML, or names a cost table that is none.
        SettingError: An unknown key, a name that is missing or given twice, a value or unit that cannot be read, a
            board without memory; the message names file, board and value.
    """
    import yaml

    path = Path(path)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, Mapping):
        raise SettingError(f"{path} must hold a list of boards under `devices:`, and may hold a `hub:`.")
    _refuse_unknown(f"{path}", document, ("devices", "hub"))
    entries = document.get("devices")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise SettingError(f"{path}: `devices:` must be a list of boards, each with at least name and memory.")
    boards = tuple(_board(path, f"device {place}", entry) for place, entry in enumerate(entries, start=1))
    hub = _hub(path, document.get("hub"))
    names = [hub.name, *(board.name for board in boards)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingError(f"{path}: two are called {twice!r}. A board answers under its name: give each its own.")
    return Fleet(boards, hub)


_TIMES = dict.fromkeys(("", "x"), Fraction(1))
_KEYS = ("name", "address", "memory", "speed", "cost_table", "bandwidth", "latency")
_LINK = ("address", "bandwidth", "latency")


def _hub(path: Path, entry: Any) -> Board:
    if entry is None:
        return Board("hub")
    link = [key for key in _LINK if isinstance(entry, Mapping) and key in entry]
    if link:
        raise SettingError(f"{path}, hub: {link[0]} belongs to a link, and a link to its board: write it there.")
    return _board(path, "hub", {"name": "hub", **entry} if isinstance(entry, Mapping) else entry)


def _board(path: Path, place: str, entry: Any) -> Board:
    if not isinstance(entry, Mapping):
        raise SettingError(f"{path}, {place}: {entry!r} is no board. Write its keys: {', '.join(_KEYS)}.")
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise SettingError(f"{path}, {place}: a board needs a name, which is text, not {name!r}.")
    where = f"{path}, {name}"
    _refuse_unknown(where, entry, _KEYS)
    if entry.get("memory") is None and place != "hub":
        raise SettingError(f"{where}: memory is missing. Say what it can give to its part, like memory: 512MB.")
    if "speed" in entry and "cost_table" in entry:
        raise SettingError(f"{where}: speed and cost_table both say how fast it is. Keep one.")
    table = entry.get("cost_table")
    try:
        return Board(
            name=name,
            address=_address(entry.get("address")),
            memory=_positive("memory", entry.get("memory"), BYTES, "MB, GB, kB, B, MiB, GiB, KiB"),
            speed=_positive("speed", entry.get("speed", 1), _TIMES, "x, or a bare number"),
            cost_table=None if table is None else CostTable.load(path.parent / str(table)),
            bandwidth=_positive("bandwidth", entry.get("bandwidth"), _BIT_RATES, "Mbit/s, kbit/s, Gbit/s, Mbps"),
            latency=_amount("latency", entry.get("latency", "0s"), TIME, "ms, s, us, ns, min"),
        )
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from error


def _refuse_unknown(where: str, entry: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in entry:
        if key not in known:
            raise SettingError(f"{where}: {unknown('key', str(key), known)}")


def _address(value: Any) -> str:
    if value is None:
        return ""
    host, _, port = str(value).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SettingError(f"address {value!r} is no host and port. Write it like 192.168.1.11:7002.")
    return str(value)


def _positive(name: str, value: Any, units: Mapping[str, Fraction], known: str) -> float:
    """An amount above 0; unlimited where it is not given."""
    if value is None:
        return math.inf
    amount = _amount(name, value, units, known)
    if amount == 0:
        raise SettingError(f"{name}: {value} must be above 0.")
    return amount


def _amount(name: str, value: Any, units: Mapping[str, Fraction], known: str) -> float:
    amount = read_amount(str(value), units, known, name=name)
    if not (math.isfinite(amount) and amount >= 0):
        raise SettingError(f"{name}: {value} must be a finite amount, and not below 0.")
    return amount
