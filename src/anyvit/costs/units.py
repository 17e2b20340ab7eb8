"""Amounts as people write them: a number and a unit, read as exact fractions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from anyvit.errors import SettingError

TIME = {
    "ns": Fraction(1, 10**9),
    **dict.fromkeys(("us", "usec", "microsecond"), Fraction(1, 10**6)),
    **dict.fromkeys(("ms", "msec", "millisecond"), Fraction(1, 1000)),
    **dict.fromkeys(("s", "sec", "second"), Fraction(1)),
    **dict.fromkeys(("min", "minute"), Fraction(60)),
}
"""Seconds in a unit of time."""

BYTES = {
    **dict.fromkeys(("b", "byte"), Fraction(1)),
    **dict.fromkeys(("kb", "k", "kilobyte"), Fraction(10**3)),
    **dict.fromkeys(("mb", "m", "megabyte"), Fraction(10**6)),
    **dict.fromkeys(("gb", "g", "gigabyte"), Fraction(10**9)),
    **{"kib": Fraction(2**10), "mib": Fraction(2**20), "gib": Fraction(2**30)},
}
"""Bytes in a unit of size."""

_AMOUNT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?)\s*(\D.*)?", re.IGNORECASE | re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|∞).*", re.IGNORECASE)


def read_amount(amount: str, units: Mapping[str, Fraction], known: str, *, name: str, sign: str = ": ") -> float:
    """The amount in base units; nan, infinities and what overflows come out as infinite, for the caller to refuse.

    Args:
        amount: A number and a unit.
        units: What one unit is in base units, by its `plain` name; "" where a bare number will do.
        known: The units to show, the usual one first.
        name: Of what this is an amount, and
        sign: what is written between the two: messages quote all three.

    Raises:
        SettingError: No number, an unknown unit, or none where one is needed.
    """
    if _NOT_FINITE.fullmatch(amount):
        return math.inf
    written, usual = f"{name}{sign}{amount}", known.split(",")[0]
    parts = _AMOUNT.fullmatch(amount)
    if parts is None:
        raise SettingError(f"{written}: {amount!r} is not an amount. Write it like {name}{sign}5{usual}.")
    number, unit = parts[1], (parts[2] or "").strip()
    size = units.get(plain(unit))
    if size is None and not unit:
        raise SettingError(f"{written} lacks a unit. Write {written}{usual}. Known: {known}.")
    if size is None:
        raise SettingError(f"{written}: unknown unit {unit!r} of {name}. Known: {known}.")
    try:
        return float(Fraction(number) * size)
    except OverflowError:
        return math.inf


def plain(unit: str) -> str:
    """A unit in lower case, singular, without spaces and what is counted: `Images per Seconds` becomes `/second`."""
    unit = re.sub(r"\s+", "", unit.lower()).replace("µ", "u").replace("μ", "u")
    unit = re.sub(r"per(?!cent)", "/", unit)
    unit = re.sub(r"^(image|img|frame)s?(?=/)", "", unit)
    return unit.removesuffix("s") if len(unit) > 3 else unit
