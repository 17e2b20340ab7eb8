"""How long shapes take here, measured a few at a time and never twice; and what that tells of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from anyvit.costs.counts import Specification, vit_macs
from anyvit.costs.device import this_device
from anyvit.costs.predictor import LEAST_SHAPES, Predictor, PredictorError, fit_predictor
from anyvit.costs.timing import Latency
from anyvit.costs.timing_cache import TimingCache
from anyvit.protocols import Event, Progress, silent
from anyvit.scaling.candidate import Candidate, Step
from anyvit.scaling.design.shape import form_of, name_of
from anyvit.scaling.pricing import Conditions, time_calls
from anyvit.scaling.workshop import Workshop

TOGETHER = 6
"""Shapes in memory at once, timed in turns."""


class ShapeTimer:
    """Measures plain ViTs on the library's one timing protocol, on the processor.

    What is known is not measured again. An unstable timing of an earlier run is: it was kept for what it is worth.

    Args:
        backend: The runtime and its setting.
        batch: Images a call.
        threads: Of the runtime.
        cache: Of earlier runs; None: nothing is kept beyond this object.
        progress: Told how far it is.
        protocol: Overrides of `measure_latencies`: runs, rounds, seconds.
    """

    def __init__(
        self,
        backend: Step,
        *,
        batch: int = 1,
        threads: int = 1,
        cache: TimingCache | None = None,
        progress: Progress = silent,
        **protocol: Any,
    ) -> None:
        self.candidate = Candidate((), backend)
        self.batch, self.threads, self.cache, self.protocol = batch, threads, cache, protocol
        self.progress = progress
        self._known: dict[Specification, Latency] = {}

    def latency(self, spec: Specification) -> Latency:
        """How long a shape takes. Several that are compared are better measured together."""
        return self.latencies([spec])[spec]

    def latencies(self, specs: Sequence[Specification]) -> dict[Specification, Latency]:
        """How long shapes take, those of similar size in turns, so that drift hits all alike.

        Raises:
            ModelError: One cannot be run; the message names it.
        """
        wanted = dict.fromkeys(specs)
        unknown = sorted((spec for spec in wanted if not self._remembered(spec)), key=vit_macs)
        for start in range(0, len(unknown), TOGETHER):
            group = unknown[start : start + TOGETHER]
            self.progress(Event("design", f"timing {len(group)} shapes", start / len(unknown)))
            for spec, latency in self._measure(group).items():
                self._known[spec] = self.cache.put(self.key(spec), latency) if self.cache else latency
        return {spec: self._known[spec] for spec in wanted}

    def predictor(
        self, shapes: Sequence[Specification], *, held_out: float = 0.2, seed: int = 0
    ) -> tuple[Predictor, PredictorError]:
        """Measure shapes that are spread over the factors and learn from them what others take.

        Unstable timings are left out while there are enough others.

        Raises:
            SettingError: Fewer than 30 shapes.
        """
        measured = self.latencies(shapes)
        steady = {spec: latency for spec, latency in measured.items() if not latency.unstable}
        used = steady if len(steady) >= LEAST_SHAPES else measured
        seconds = [latency.seconds for latency in used.values()]
        return fit_predictor([*used], seconds, held_out=held_out, seed=seed)

    def key(self, spec: Specification) -> dict[str, Any]:
        """What the timing of a shape belongs to."""
        return {
            "device": this_device().fingerprint,
            "backend": self.candidate.backend.name,
            "setting": dict(self.candidate.backend.setting),
            "batch": self.batch,
            "threads": self.threads,
            "protocol": self.protocol,
            "shape": asdict(spec),
        }

    def _remembered(self, spec: Specification) -> bool:
        if spec not in self._known and self.cache:
            latency = self.cache.get(self.key(spec))
            if latency and not latency.unstable:
                self._known[spec] = latency
        return spec in self._known

    def _measure(self, group: Sequence[Specification]) -> dict[Specification, Latency]:
        """Each on images of its own size, whatever the stopwatch hands it."""
        calls = {f"{name_of(spec)} of {spec.num_classes} classes": self._call(spec) for spec in group}
        conditions = Conditions(group[0].image_size, self.batch, self.threads)
        latencies = time_calls(calls, conditions, self.batch, progress=self.progress, **self.protocol)
        return dict(zip(group, latencies.values(), strict=True))

    def _call(self, spec: Specification) -> Callable[[Tensor], object]:
        images = Conditions(spec.image_size, self.batch, self.threads).example()
        runner = Workshop(form_of(spec).build(), images, images=images).runner(self.candidate)
        return partial(_answer, runner, images)


def _answer(runner: Callable[[Tensor], object], images: Tensor, given: Tensor) -> object:
    return runner(images)
