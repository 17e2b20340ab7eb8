"""How long a run may take, as people say it: `90s`, `20m`, `1h30m`."""

from __future__ import annotations

import re

from anyvit.errors import SettingError

_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(sec|min|s|m|h)\s*")


def seconds_of(text: str) -> float:
    """The seconds that `text` names.

    Raises:
        SettingError: It names none.
    """
    if not re.fullmatch(f"(?:{_PART.pattern})+", text.strip().lower()):
        raise SettingError(f"cannot read the time {text!r}. Write it like 90s, 20m or 1h30m.")
    seconds = sum(float(amount) * _SECONDS[unit] for amount, unit in _PART.findall(text.lower()))
    if seconds <= 0:
        raise SettingError(f"the time must be above 0, not {text!r}.")
    return seconds
