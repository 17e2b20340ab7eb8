"""How many replicas, and what each takes of its machine: from text to Ray's options."""

from __future__ import annotations

import re
from typing import Any

from anyvit.errors import SettingError

ONGOING = 1000
"""Requests under way in a replica, and waiting in a proxy for one. So many that it is the replica's own controller that
sheds, long before; what comes beyond is from clients that send slowly, or finds no replica at all."""

TARGET_ONGOING = 4.0
"""Requests under way in a replica, in the mean. With more, images wait, and the controller turns to smaller candidates:
another replica brings the accurate ones back."""

UPSCALE_DELAY_S = 10.0
"""Before another replica starts; until it is ready, smaller candidates bridge the gap."""

READINESS_S = 1.0
"""Between the questions whether a replica is ready, so that requests go round one whose engine starts anew."""


def scale_of(replicas: str) -> tuple[int, int]:
    """The least and the most replicas.

    Raises:
        SettingError: It is neither like `2` nor like `1-4`.
    """
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", replicas)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise SettingError(
            f"replicas is {replicas!r}: write how many, 2, or from how many to how many, 1-4; at least 1."
        )
    return least, most


def placement_of(placement: str | None) -> dict[str, Any]:
    """What a replica takes of its machine, as Ray takes it.

    Cores are not counted unless they are asked for: a machine of few cores then runs several replicas, and it is their
    controllers that find out how fast it is.

    Raises:
        SettingError: It is not like `num_cpus=2, num_gpus=1, board=1`.
    """
    taken: dict[str, float] = {}
    for part in placement.split(",") if placement is not None else ():
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*(\d+(?:\.\d+)?)\s*", part)
        if match is None or match[1] in taken or match[1] in ("CPU", "GPU", "memory"):
            raise SettingError(
                f"placement has {part.strip()!r}: write num_cpus=2, num_gpus=1, and other resources by their name on "
                "the cluster, board=1; each once, separated by commas."
            )
        name, amount = match[1], float(match[2])
        if name != "num_cpus" and amount > 1 and not amount.is_integer():
            raise SettingError(f"placement has {part.strip()!r}: Ray gives parts of one, or whole numbers.")
        taken[name] = amount
    return {"num_cpus": taken.pop("num_cpus", 0.0), "num_gpus": taken.pop("num_gpus", 0.0), "resources": taken}


def scaling(least: int, most: int) -> dict[str, Any]:
    """Of a deployment: how many replicas."""
    if least == most:
        return {"num_replicas": least}
    demand = {"target_ongoing_requests": TARGET_ONGOING, "upscale_delay_s": UPSCALE_DELAY_S}
    return {"autoscaling_config": {"min_replicas": least, "max_replicas": most, **demand}}
