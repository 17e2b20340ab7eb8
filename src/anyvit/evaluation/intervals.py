"""How far chance may have moved a share that was counted on a sample."""

from __future__ import annotations

import math
from statistics import NormalDist

from anyvit.errors import SettingError


def wilson(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a proportion (Wilson 1927, without continuity correction), within 0 and 1.

    Unlike the textbook one it holds for small samples and for shares near 0 and 1.

    Raises:
        SettingError: No observations, `correct` outside 0..total, or `level` outside (0, 1).
    """
    if not 0 <= correct <= total or total < 1:
        raise SettingError(f"{correct} correct of {total} is no share: total must be above 0, correct within it")
    if not 0 < level < 1:
        raise SettingError(f"level {level} must be between 0 and 1")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = correct / total
    centre = share + z * z / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    low = 0.0 if correct == 0 else (centre - reach) / scale
    high = 1.0 if correct == total else (centre + reach) / scale
    return low, high
