"""Requests in, answers out: the queue between whoever asks and the engine, without a word of HTTP.

Everything here runs on one event loop. The controller decides; this keeps its work and the engine together: it hands
over batches, gives answers to who waits for them, and starts another engine where one dies.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from anyvit.costs.timing import PROMISE_MARGIN
from anyvit.data.decode import TooManyPixelsError
from anyvit.deploy.serving import calibration, problems
from anyvit.deploy.serving.controller import Controller, Decision, Policy, Work
from anyvit.deploy.serving.engine_link import Engine, EngineDied, Holding
from anyvit.deploy.serving.lag import MOST_LAG, Lag
from anyvit.deploy.serving.menu import Menu
from anyvit.deploy.serving.problems import Problem
from anyvit.deploy.serving.reading import Reader
from anyvit.deploy.serving.service_times import ServiceTimes
from anyvit.deploy.serving.telemetry import Telemetry
from anyvit.errors import AnyViTError, DataError
from anyvit.protocols import Event, Progress, silent

ATTEMPTS = 2
"""Engines that a batch is given to: one that ended while it computed may not have been at fault itself."""

LEAST_PATIENCE_S = 5.0
PATIENCE = 20.0
"""An engine that takes so many times as long as expected, and at least so many seconds, counts as dead."""

FIRST_ENGINES = 3
"""Engines that may die before one was ever ready; then it is said why."""

START_S, LONGEST_PAUSE_S = 1.0, 30.0
"""No engine starts faster; and the pause before one that follows others that died at once."""

log = logging.getLogger("anyvit")


@dataclass(frozen=True, slots=True)
class Said:
    """The answer about one image.

    Attributes:
        probabilities: Of each class, (K,).
        candidate: Who answered.
        waited_s: Seconds from its arrival until its batch began.
        computed_s: Seconds that its batch was computed.
    """

    probabilities: Tensor
    candidate: str
    waited_s: float
    computed_s: float


@dataclass(slots=True, eq=False)
class _Pending:
    """What belongs to an image that waits."""

    pixels: bytes
    said: asyncio.Future[Said]
    unseen_s: float  # that its request has waited before it was seen
    attempts: int = 0


@dataclass(slots=True)
class Service:
    """A model that answers under a latency objective, while the load changes.

    Args:
        menu: What it may answer with.
        engine: Holds the candidates of the menu. It is started here.
        objective: Seconds from the arrival of a request to its answer.
        policy: How careful the controller is.
        most_pixels: Of an image.
        progress: Told how far it is until it is ready, and when an engine starts anew.
    """

    menu: Menu
    engine: Engine
    objective: float
    policy: Policy = field(default_factory=Policy)
    most_pixels: int | None = None
    progress: Progress = silent
    telemetry: Telemetry = field(init=False)
    controller: Controller | None = field(init=False, default=None)
    ready: bool = field(init=False, default=False)
    failure: AnyViTError | None = field(init=False, default=None)
    """Why it never became ready."""
    when_failed: Callable[[], None] = field(init=False, default=lambda: None)
    when_ready: Callable[[], None] = field(init=False, default=lambda: None)
    _start_s: float = field(init=False, default=START_S)
    """What starting an engine anew took last."""
    _reader: Reader = field(init=False)
    _work_is_there: asyncio.Event = field(init=False)
    _lag: Lag = field(init=False)
    _running: asyncio.Task[None] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.telemetry = Telemetry(self.objective, self.menu.accuracies)
        self._reader = Reader(self.menu.preprocessing, self.most_pixels)
        self._work_is_there = asyncio.Event()
        self._lag = Lag()

    @property
    def image_bytes(self) -> int:
        """Of the pixels of an image, as the engine takes them."""
        return 3 * self.menu.preprocessing.image_size**2

    def start(self) -> None:
        """Begin to become ready. Must be called on the event loop."""
        self._running = asyncio.create_task(self._keep_running())
        self._lag.watch()

    async def stop(self) -> None:
        """End the engine. Whoever still waits gets an error."""
        self.ready = False
        self._lag.stop()
        if self._running:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
        self._refuse_waiting(lambda work: True, "the server ends")
        await self.engine.stop()
        self._reader.close()

    async def answer(
        self, images: Sequence[bytes], *, deadline: float | None = None, budget: str | None = None
    ) -> list[Said | DataError]:
        """Answer images, in order; for one that cannot be read, why.

        When this is cancelled, what was not computed yet is not.

        Args:
            images: Encoded images.
            deadline: Seconds that the answer may take; None: the objective.
            budget: Answer with a candidate inside it.

        Raises:
            Problem: Not ready, overloaded, too late, or the engine failed.
            BudgetError: No candidate is inside the budget.
            SettingError: The budget cannot be read.
        """
        controller = self._controller_if_ready()
        if self._lag.seconds > MOST_LAG * self.objective:
            self.telemetry.shed(len(images))
            raise problems.overloaded(1.0)
        allowed = self.menu.allowed(budget) if budget else None
        now = time.monotonic()
        until = now - self._lag.seconds + (self.objective if deadline is None else deadline) / PROMISE_MARGIN
        self._admit(controller, len(images), until, now, allowed)
        try:
            return await _all(self._answer(controller, image, now, until, allowed) for image in images)
        except asyncio.CancelledError:
            self.telemetry.left(len(images))
            raise

    def _controller_if_ready(self) -> Controller:
        if not self.ready or self.controller is None:
            raise problems.not_ready("the model is not ready to answer yet", self._start_s)
        return self.controller

    def _admit(
        self, controller: Controller, images: int, until: float, now: float, allowed: frozenset[str] | None
    ) -> None:
        wait = controller.refuse(images, until, now, allowed)
        if wait is None:
            return
        if wait == float("inf"):
            self.telemetry.expired(images)
            raise problems.deadline_exceeded(
                f"{images} image{'s' * (images > 1)} cannot be answered in {1e3 * (until - now):.3g} ms, "
                "not even by the fastest candidate and without a queue"
            )
        self.telemetry.shed(images)
        raise problems.overloaded(wait)

    async def _answer(
        self, controller: Controller, image: bytes, arrived: float, until: float, allowed: frozenset[str] | None
    ) -> Said | DataError:
        try:
            pixels = await self._reader.pixels(image, until)
        except BaseException as error:
            controller.give_up()
            self._note_unread(error)
            if isinstance(error, DataError) and not isinstance(error, TooManyPixelsError):
                return error
            raise
        pending = _Pending(pixels, asyncio.get_running_loop().create_future(), self._lag.seconds)
        work = Work(arrived, until, allowed, pending)
        controller.add(work)
        self._work_is_there.set()
        try:
            return await pending.said
        except asyncio.CancelledError:
            controller.cancel(work)
            raise

    def _note_unread(self, error: BaseException) -> None:
        if isinstance(error, DataError):
            self.telemetry.unreadable()
        elif isinstance(error, Problem):
            self.telemetry.expired(1)

    async def _keep_running(self) -> None:
        """Keep an engine at work, whatever becomes of engines."""
        pause, deaths = 0.0, 0
        while True:
            begun = time.monotonic()
            try:
                await self._start_engine()
                await self._work_off()
            except EngineDied as death:
                self.ready = False
                self.telemetry.engine_died()
                deaths += 1
                if self.controller is None and deaths == FIRST_ENGINES:
                    self.failure = AnyViTError(f"{death}, {deaths} times before it was ready: see what it printed.")
                log.warning("%s; another one is started", death)
                self._refuse_waiting(lambda work: work.deadline < time.monotonic() + self._start_s, str(death))
            except AnyViTError as error:
                if self.controller is None:
                    self.failure = error
                log.warning("the engine does not start: %s", error)
            except Exception as error:  # nobody else would hear of it
                log.exception("the server cannot go on")
                self.failure = AnyViTError(f"{type(error).__name__}: {error}")
            if self.failure:
                self.ready = False
                self._refuse_waiting(lambda work: True, str(self.failure))
                self.when_failed()
                return
            pause = 0.0 if time.monotonic() - begun > LONGEST_PAUSE_S else min(2 * pause + 0.1, LONGEST_PAUSE_S)
            await asyncio.sleep(pause)

    async def _start_engine(self) -> None:
        begun = time.monotonic()
        self.progress(Event("serve", "starting the engine", 0.0))
        holding = await self.engine.start(self.progress)
        if self.controller is None:
            self.menu = self.menu.without(holding.left_out)
            self._reader.warm()
            self.controller = await self._calibrated(holding)
            holding = replace(holding, memory=await self.engine.keep(self.controller.ladder))
        else:
            sizes = {id: self.controller.times.sizes(id) for id in self.controller.ladder}
            await calibration.warm(self.engine, sizes, self.image_bytes)
            self._start_s = time.monotonic() - begun
        self.when_ready()
        self.ready = True
        ladder = ", ".join(self.controller.ladder)
        self.progress(Event("serve", f"ready: {ladder} ({holding.memory / 1e6:.0f} MB)"))

    async def _calibrated(self, holding: Holding) -> Controller:
        """A controller over what the engine holds, as it is timed now."""
        times = await calibration.measure(
            self.engine, holding.resident, self.image_bytes, self.objective, self.progress
        )
        self.menu = self.menu.timed({id: row[1] for id, row in times.computing.items()})
        accuracies = {id: self.menu.accuracies.get(id, 0.0) for id in holding.resident}
        objective = self.objective / PROMISE_MARGIN
        every = Controller(accuracies, ServiceTimes(times.whole), objective, self.policy)
        useful, useless = calibration.useful(every, self.objective)
        self.menu = self.menu.without(useless)
        self.telemetry.serves(useful)
        return Controller({id: accuracies[id] for id in useful}, every.times, objective, self.policy)

    async def _work_off(self) -> None:
        """Hand one batch after the other to the engine, until it dies."""
        controller = self._controller_if_ready()
        while True:
            self._work_is_there.clear()
            decision = controller.next(time.monotonic())
            for work in decision.expired:
                self.telemetry.expired(1)
                _fail(work, problems.deadline_exceeded("the image would be answered too late, and was not computed"))
            self.telemetry.state(controller)
            if decision.candidate is None:
                await self._work_is_there.wait()
            else:
                await self._run(controller, decision, decision.candidate)

    async def _run(self, controller: Controller, decision: Decision, id: str) -> None:
        begun = time.monotonic()
        expected = controller.times.seconds(id, len(decision.batch), begun)
        pixels = [work.payload.pixels for work in decision.batch]
        try:
            answers, computed = await self.engine.run(id, pixels, patience=max(PATIENCE * expected, LEAST_PATIENCE_S))
            if not torch.isfinite(answers).all():
                raise AnyViTError(f"{id} answered with numbers that are not finite")
        except AnyViTError as error:
            controller.failed(time.monotonic())
            for work in decision.batch:
                self.telemetry.failed()
                _fail(work, problems.engine_failed(str(error)))
            return
        except EngineDied as death:
            controller.failed(time.monotonic())
            self._try_again(controller, decision, str(death))
            raise
        now = time.monotonic()
        controller.done(decision, now - begun, now)
        readers = 0
        for work, probabilities in zip(decision.batch, answers, strict=True):
            if not work.payload.said.done():
                readers += 1
                self.telemetry.answered(id, now - work.arrived + work.payload.unseen_s)
                work.payload.said.set_result(Said(probabilities, id, begun - work.arrived, computed))
        self.telemetry.batch(id, len(decision.batch), now - begun, readers)

    def _try_again(self, controller: Controller, decision: Decision, why: str) -> None:
        """Give the images of a batch whose engine has died to the next one, once, if somebody still waits for them."""
        for work in decision.batch:
            work.payload.attempts += 1
            if work.payload.said.done():
                continue
            if work.payload.attempts < ATTEMPTS:
                controller.again(work)
            else:
                self.telemetry.failed()
                _fail(work, problems.engine_failed(f"{why}, twice with this image"))

    def _refuse_waiting(self, which: Callable[[Work], bool], why: str) -> None:
        """Whoever would wait in vain is told at once."""
        if self.controller is None:
            return
        for work in [work for work in self.controller.waiting if which(work)]:
            self.controller.cancel(work)
            self.telemetry.failed()
            _fail(work, problems.not_ready(why, self._start_s))


async def _all(answers: Iterable[Coroutine[Any, Any, Said | DataError]]) -> list[Said | DataError]:
    """All of them; where one fails, or this is cancelled, the others are cancelled."""
    first, *others = answers
    if not others:
        return [await first]
    tasks = [asyncio.create_task(answer) for answer in (first, *others)]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


def _fail(work: Work, problem: Problem) -> None:
    if not work.payload.said.done():
        work.payload.said.set_exception(problem)
