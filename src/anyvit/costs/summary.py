"""One round of timings, summed up so that a few disturbed runs do not move the figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anyvit.errors import SettingError


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a round; all but `n_total` are of the runs that were kept."""

    n_total: int
    n_kept: int
    median: float
    p10: float
    p90: float
    rel_iqr: float  # distance of the quartiles over the median
    ci_low: float  # approximate 95 % interval of the median
    ci_high: float


def summarize(series: Sequence[float]) -> Summary:
    """Drop the runs that lie more than three quartile distances above the third quartile, then sum up the others.

    Quantiles are interpolated linearly; the interval of the median is bounded by order statistics.

    Args:
        series: Times of the runs, in any unit, which is that of the summary.

    Raises:
        SettingError: No runs, or a time that is not finite.
    """
    times = np.sort(np.asarray(series, dtype=np.float64))
    if not len(times) or not np.isfinite(times).all():
        raise SettingError(f"a round of timings must hold finite times, not {list(series)}")
    first, third = np.quantile(times, [0.25, 0.75])
    kept = times[times <= third + 3 * (third - first)]
    n = len(kept)
    p10, q25, median, q75, p90 = np.quantile(kept, [0.1, 0.25, 0.5, 0.75, 0.9]).tolist()
    low = max(math.floor(n / 2 - 0.98 * math.sqrt(n)), 0)
    high = min(math.ceil(n / 2 + 0.98 * math.sqrt(n)), n - 1)
    rel_iqr = (q75 - q25) / median if median else 0.0
    return Summary(len(times), n, median, p10, p90, rel_iqr, float(kept[low]), float(kept[high]))
