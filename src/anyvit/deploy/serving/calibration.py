"""What batches take here, with all candidates held and used in turn: measured before the first request comes.

Every candidate answers every size of batch, so nothing is compiled or allocated when the first request comes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

from anyvit.costs.timing import PROMISE_MARGIN
from anyvit.deploy.serving.controller import Controller
from anyvit.deploy.serving.engine_link import PATIENCE_S, Engine
from anyvit.errors import BudgetError
from anyvit.protocols import Event, Progress, silent

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Images a batch may have: no other sizes are asked of the engine."""

TURNS = 7


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds by candidate and size: of the whole way to the engine and back, and of computing alone."""

    whole: Mapping[str, Mapping[int, float]]
    computing: Mapping[str, Mapping[int, float]]


async def measure(
    engine: Engine, ids: Sequence[str], image_bytes: int, objective: float, progress: Progress = silent
) -> Times:
    """Time the batches of an idle engine, in turns, and take the medians.

    Args:
        engine: One that has started.
        ids: The candidates.
        image_bytes: Of the pixels of an image.
        objective: Seconds beyond which larger batches are not asked for; one image is always timed.
        progress: Told how far it is.
    """
    random = Random(0)
    pixels = [random.randbytes(image_bytes) for _ in range(SIZES[-1])]
    sizes = {id: await _warm(engine, id, pixels, objective, progress) for id in ids}
    whole: dict[tuple[str, int], list[float]] = {}
    computing: dict[tuple[str, int], list[float]] = {}
    for turn in range(TURNS):
        for id in ids:
            progress(Event("serve", f"timing {id}", turn / TURNS))
            for size in sizes[id]:
                seconds, alone = await _timed(engine, id, pixels[:size])
                whole.setdefault((id, size), []).append(seconds)
                computing.setdefault((id, size), []).append(alone)
    return Times(
        *({id: {size: median(all[id, size]) for size in sizes[id]} for id in ids} for all in (whole, computing))
    )


def useful(controller: Controller, objective: float) -> tuple[list[str], dict[str, str]]:
    """Which candidates of a controller are of use: each carries more than all that are more accurate.

    Args:
        controller: Over all candidates, as they were timed.
        objective: Seconds from the arrival of a request to its answer, nothing spared.

    Returns:
        Their ids, and of the others why not.

    Raises:
        BudgetError: Not even one image is answered within the objective.
    """
    times, most, found = controller.times, 0.0, list[str]()
    fastest = min(controller.ladder, key=lambda id: times.table(id, 1))
    needs = PROMISE_MARGIN * times.table(fastest, 1)
    if needs > objective:
        raise BudgetError(
            f"--slo {1e3 * objective:g}ms cannot be kept here: the fastest candidate, {fastest}, needs "
            f"{1e3 * needs:.3g} ms for one image, with 5% to spare. Allow more, or shrink the model."
        )
    for id in controller.ladder:
        carried = controller.carries(id, 0.0)
        if carried > most:
            most = carried
            found.append(id)
    why = "a more accurate one carries as many images a second within the objective"
    return found, {id: why for id in controller.ladder if id not in found}


async def warm(engine: Engine, sizes: Mapping[str, Sequence[int]], image_bytes: int) -> None:
    """Let each candidate of a new engine answer each of these sizes once."""
    for id, of_id in sizes.items():
        for size in of_id:
            await _timed(engine, id, [bytes(image_bytes)] * size)


async def _warm(engine: Engine, id: str, pixels: Sequence[bytes], objective: float, progress: Progress) -> list[int]:
    """The sizes that are worth timing: up to the first that takes too long."""
    sizes: list[int] = []
    for size in SIZES:
        progress(Event("serve", f"warming up {id}, {size} images", len(sizes) / len(SIZES)))
        await _timed(engine, id, pixels[:size])
        seconds, _ = await _timed(engine, id, pixels[:size])
        if sizes and seconds > objective:
            break
        sizes.append(size)
    return sizes


async def _timed(engine: Engine, id: str, pixels: Sequence[bytes]) -> tuple[float, float]:
    begun = time.perf_counter()
    _, computing = await engine.run(id, pixels, patience=PATIENCE_S, worst=True)
    return time.perf_counter() - begun, computing
