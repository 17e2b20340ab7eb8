"""The main job on data that comes with a dependency: scikit-learn's handwritten digits."""

from __future__ import annotations

from anyvit.deploy.bundle import Bundle
from anyvit.jobs.fit import fit
from anyvit.protocols import Progress, silent

MODEL, BUDGET = "hydravit_small_patch2_8", "latency<=5ms, size<=1.5MB"


def quickstart(*, out: str = "runs/quickstart", seed: int = 0, progress: Progress = silent) -> Bundle:
    """`fit` on scikit-learn's handwritten digits: under three minutes on two cores, no download.

    Args:
        out: The folder of the bundle.
        seed: Everything random follows from it.
        progress: Called with news.

    Returns:
        The bundle in `out`.
    """
    return fit("digits", model=MODEL, budget=BUDGET, out=out, seed=seed, progress=progress)
