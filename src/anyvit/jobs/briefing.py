"""The means that a design has on this machine: timings that are remembered, memory in new processes, a run's folder."""

from __future__ import annotations

from anyvit.costs.budget import Budget
from anyvit.costs.timing_cache import TimingCache
from anyvit.data import DataSet
from anyvit.deploy.promise import untrained_memory
from anyvit.jobs.plan import RANKING
from anyvit.jobs.run_folder import TUNING, RunFolder
from anyvit.protocols import Progress
from anyvit.scaling.candidate import Candidate, Step
from anyvit.scaling.design.brief import Brief
from anyvit.scaling.design.timing import ShapeTimer
from anyvit.scaling.form import Form

WITHOUT_IMAGES = 224, 1000
"""Image size and classes where no images tell them."""


def brief_for(
    budget: Budget,
    dataset: DataSet | None,
    run: RunFolder,
    progress: Progress,
    *,
    backend: Step,
    image_size: int | None = None,
    batch: int = 1,
    threads: int = 1,
    epochs: float | None = None,
    deadline: float | None = None,
    seed: int = 0,
) -> Brief:
    """A budget and the means to design for it. The arguments are those of `design`.

    Raises:
        SettingError: A bound on what a design cannot know, or none at all.
    """
    size, num_classes = (dataset.image_size, len(dataset.classes)) if dataset else WITHOUT_IMAGES

    def memory(form: Form) -> float:
        return untrained_memory(form, Candidate((), backend), brief.conditions)

    brief = Brief(
        budget=budget,
        image_size=image_size or size,
        num_classes=num_classes,
        timer=ShapeTimer(
            backend, batch=batch, threads=threads, cache=TimingCache(), progress=progress, **RANKING, warn=False
        ),
        memory=memory,
        folder=run.path / TUNING,
        recall=run.recall,
        keep=run.keep,
        dataset=dataset,
        epochs=epochs,
        deadline=deadline,
        seed=seed,
        progress=progress,
    )
    return brief
