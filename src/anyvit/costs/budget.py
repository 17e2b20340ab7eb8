"""The budget language: `latency<=5ms, memory<=200MB, accuracy>=0.9`, in any units a person would write.

Amounts are read as exact fractions, so `5ms`, `0.005 s` and `5000us` are one and the same bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from anyvit.costs.units import BYTES, TIME, read_amount
from anyvit.errors import SettingError, unknown

_NUMBERS = {
    "": Fraction(1),
    **dict.fromkeys(("k", "thousand"), Fraction(10**3)),
    **dict.fromkeys(("m", "million"), Fraction(10**6)),
    **dict.fromkeys(("g", "b", "bn", "billion"), Fraction(10**9)),
    **dict.fromkeys(("t", "trillion"), Fraction(10**12)),
}
_PARAMS = _NUMBERS | {number + noun: size for number, size in _NUMBERS.items() for noun in ("param", "parameter")}
_MACS = _NUMBERS | {number + "mac": size for number, size in _NUMBERS.items()}
_RATES = {f"/{unit}": 1 / size for unit, size in TIME.items()} | {"fps": Fraction(1), "hz": Fraction(1)}
_SHARES = {"": Fraction(1), "%": Fraction(1, 100), "percent": Fraction(1, 100)}


@dataclass(frozen=True, slots=True)
class Cost:
    """A name of the budget language: what it means, which way it is bounded, how its amounts are written."""

    meaning: str
    operator: str
    units: Mapping[str, Fraction]  # what one unit is in base units; "" where a bare number will do
    known: str  # the units to show, the usual one first
    base: str  # the unit of `Bound.value`


COSTS: Mapping[str, Cost] = {
    "latency": Cost("median time of one call, from the preprocessed batch", "<=", TIME, "ms, s, us, ns, min", "s"),
    "latency_p95": Cost("95th percentile of the same", "<=", TIME, "ms, s, us, ns, min", "s"),
    "latency_expected": Cost(
        "mean time of one call as images come in validation", "<=", TIME, "ms, s, us, ns, min", "s"
    ),
    "latency_e2e": Cost("the same with reading and preprocessing", "<=", TIME, "ms, s, us, ns, min", "s"),
    "memory": Cost("peak rise over the imported runtime", "<=", BYTES, "MB, GB, kB, B, MiB, GiB, KiB", "B"),
    "size": Cost("the weights as saved", "<=", BYTES, "MB, GB, kB, B, MiB, GiB, KiB", "B"),
    "params": Cost("number of parameters", "<=", _PARAMS, "M, k, G, million, billion, or a bare number", ""),
    "macs": Cost("multiply-accumulates of one image", "<=", _MACS, "G, M, k, GMACs, MMACs, or a bare number", ""),
    "throughput": Cost("images answered in a second", ">=", _RATES, "/s, /min, images/s, fps", "/s"),
    "accuracy": Cost("share of images answered right", ">=", _SHARES, "%, or a bare number up to 1", ""),
}
"""Every cost a budget can bound, in base units: seconds, bytes, counts, images per second, a share of 1."""

_OPERATORS = {"<": "<=", "<=": "<=", "=<": "<=", "≤": "<=", ">": ">=", ">=": ">=", "=>": ">=", "≥": ">="}
_SEPARATOR = re.compile(r"[,;]\s*and\b|[,;]|\band\b", re.IGNORECASE)
_CLAUSE = re.compile(r"([a-z][a-z0-9_\- ]*?)\s*([<>=≤≥:]+)\s*(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit on one cost.

    Args:
        cost: A key of `COSTS`.
        operator: "<=" or ">=", whichever bounds this cost.
        value: The limit in base units: seconds, bytes, counts, images per second, a share of 1.
        text: The bound as it was written, without needless spaces; made from the rest where it is empty.

    Raises:
        SettingError: An unknown cost, the wrong operator, a limit that is not finite and above 0, accuracy above 1.
    """

    cost: str
    operator: str
    value: float
    text: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise SettingError(unknown("cost", self.cost, COSTS))
        cost = COSTS[self.cost]
        if not self.text:
            object.__setattr__(self, "text", f"{self.cost}{self.operator}{self.value!r}{cost.base}")
        if self.operator != cost.operator:
            side = "above" if cost.operator == "<=" else "below"
            remedy = self.text.replace(self.operator, cost.operator)
            raise SettingError(f"{self.text}: {self.cost} is bounded from {side}. Write {remedy}.")
        if not (math.isfinite(self.value) and self.value > 0):
            raise SettingError(f"{self.text}: the limit must be a finite number above 0.")
        if self.cost == "accuracy" and self.value > 1:
            raise SettingError(f"{self.text}: accuracy is at most 1. Write accuracy>=0.9 or accuracy>=90%.")

    def met_by(self, value: float, margin: float = 1.0) -> bool:
        """Whether `value` (base units) is inside, even when it turns out worse by the factor `margin`."""
        return value * margin <= self.value if self.operator == "<=" else value / margin >= self.value

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds on costs and accuracy, at most one on each; all must be met.

    Raises:
        SettingError: A cost is bounded twice.
    """

    bounds: tuple[Bound, ...] = ()

    def __post_init__(self) -> None:
        first: dict[str, Bound] = {}
        for bound in self.bounds:
            if bound.cost in first:
                raise SettingError(f"{bound.cost} is bounded twice: {first[bound.cost]} and {bound}. Keep one.")
            first[bound.cost] = bound

    @classmethod
    def parse(cls, text: str | Budget | None) -> Budget:
        """Read bounds separated by `,`, `;` or `and`. None and blank text are the budget without bounds.

        Raises:
            SettingError: What cannot be read, with what is known: an unknown cost or unit, a missing unit, an empty
                clause, and whatever `Bound` and `Budget` refuse.
        """
        if isinstance(text, Budget):
            return text
        if text is None or not text.strip():
            return cls()
        return cls(tuple(_bound(clause.strip(), text) for clause in _SEPARATOR.split(text)))

    def cost_bounds(self) -> tuple[Bound, ...]:
        """The bounds on everything but accuracy."""
        return tuple(bound for bound in self.bounds if bound.cost != "accuracy")

    def accuracy_bound(self) -> Bound | None:
        """The bound on accuracy, where there is one."""
        return next((bound for bound in self.bounds if bound.cost == "accuracy"), None)

    def __str__(self) -> str:
        return ", ".join(bound.text for bound in self.bounds)


_STEPS: Mapping[str, tuple[tuple[float, str], ...]] = {
    "s": ((1, " s"), (1e-3, " ms"), (1e-6, " us")),
    "B": ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1, " B")),
    "/s": ((1, "/s"),),
    "": ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1, "")),
}


def format_cost(cost: str, value: float) -> str:
    """`value` (base units) to three digits, as people say it: `23.4 ms`, `5.72 M`, `21.9 MB`, `120/s`, `93.4 %`."""
    rounded = float(f"{value:.3g}")
    steps = ((0.01, " %"),) if cost == "accuracy" else _STEPS[COSTS[cost].base]
    size, unit = next((step for step in steps if abs(rounded) >= step[0]), steps[-1])
    amount = rounded / size
    return (f"{amount:.3g}" if abs(amount) < 999.5 else f"{amount:.0f}") + unit


def _bound(clause: str, budget: str) -> Bound:
    if not clause:
        raise SettingError(f"the budget {budget!r} has an empty clause. Write it like latency<=5ms, memory<=200MB.")
    parts = _CLAUSE.fullmatch(clause)
    if parts is None:
        raise SettingError(f"cannot read {clause!r}: a bound is a cost, <= or >=, and an amount, like latency<=5ms.")
    name, sign, amount = parts.groups()
    name = re.sub(r"[ -]+", "_", name.lower())
    if name not in COSTS:
        raise SettingError(unknown("cost", name, COSTS))
    if sign not in _OPERATORS:
        raise SettingError(f"{clause!r}: {name} is bounded with {COSTS[name].operator}, not with {sign}.")
    cost, sign, amount = COSTS[name], _OPERATORS[sign], " ".join(amount.split())
    value = read_amount(amount, cost.units, cost.known, name=name, sign=sign)
    return Bound(name, sign, value, f"{name}{sign}{amount}")
