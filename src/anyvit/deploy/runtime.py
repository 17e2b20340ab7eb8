"""A bundle that answers: images in, labels out."""

from __future__ import annotations

from pathlib import Path
from threading import RLock

from torch import Tensor

from anyvit.backends.precision import on_threads
from anyvit.costs.budget import Budget
from anyvit.deploy.bundle import Bundle
from anyvit.deploy.prediction import Answer, Answering, Asking
from anyvit.errors import SettingError
from anyvit.protocols import Runner
from anyvit.scaling.candidate import Result
from anyvit.scaling.cascade import extremes

_IN_TURN = RLock()
"""Models compute one after the other: they share the threads of PyTorch, and a runner takes one batch at a time."""


class Predictor(Answering):
    """Answers with the candidates of a bundle, on as many threads as they were measured with.

    A runner is prepared when a budget first asks for it, and kept; all share one set of weights. Several threads may
    ask: images are read side by side, and models compute in turn.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.classes = bundle.classes
        self.preprocessing = bundle.preprocessing
        self._runners: dict[str, Runner] = {}

    @property
    def results(self) -> tuple[Result, ...]:
        return self.bundle.results

    def asking(self, result: Result, *, worst: bool = False) -> Asking:
        usual = self.runner(result)
        runner = extremes(usual)[1] if worst else usual

        def ask(pixels: Tensor) -> Answer:
            images = self.preprocessing.normalize_batch(pixels.contiguous())
            with _IN_TURN, on_threads(self.bundle.conditions.threads):
                probabilities = runner(images)
            return lambda: (probabilities, None)

        return ask

    def runner(self, result: Result) -> Runner:
        """The runner of a candidate, prepared once. Whoever calls it shares it, and must not call it side by side."""
        with _IN_TURN:
            if result.id not in self._runners:
                self._runners[result.id] = self.bundle.runner(result)
            return self._runners[result.id]

    def release(self, result: Result) -> None:
        with _IN_TURN:
            self._runners.pop(result.id, None)

    def _pick(self, budget: str | Budget | None) -> Result:
        return self.bundle.pick(budget)


def load(
    bundle: str | Path,
    *,
    quorum: int | None = None,
    deadline: str | None = None,
    transport: str | None = None,
    token_file: str | None = None,
    tls_ca: str | None = None,
) -> Answering:
    """Open a bundle, or a folder placed on boards, to answer with it.

    Args:
        bundle: The folder that `fit` or `spread` has written. The other arguments are for the latter alone.
        quorum: The least number of groups, or sub-models, that an answer may come from. None: 1.
        deadline: How long an answer may take, `500ms`. None: ten times what was planned, at least a second.
        transport: How boards are reached: `grpc` (None means that) or `ray`.
        token_file: A file with the token that boards ask for. None: the environment variable ANYVIT_TOKEN.
        tls_ca: The certificates (PEM) that sign those of the boards. None: connections are not encrypted.

    Raises:
        BundleError: `bundle` is damaged, newer than this AnyViT reads, or neither of the two.
        SettingError: A value outside its range, or for boards where there are none.
        MissingExtraError: The library of the transport is not installed.
    """
    from anyvit.deploy.spread.placed import is_placed
    from anyvit.deploy.spread.predictor import open_placed

    for_boards = {
        "quorum": quorum,
        "deadline": deadline,
        "transport": transport,
        "token_file": token_file,
        "tls_ca": tls_ca,
    }
    if is_placed(bundle):
        return open_placed(bundle, **for_boards)  # type: ignore[arg-type]
    given = [name for name, value in for_boards.items() if value is not None]
    if given:
        raise SettingError(f"{given[0]} is about boards, and {bundle} is a bundle on this machine: leave it out.")
    opened = Bundle.load(bundle)
    opened.model()  # damaged weights are said now, not at the first image
    return Predictor(opened)
