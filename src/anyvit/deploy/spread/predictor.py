"""A placed folder that answers: images in, labels out, by way of the boards."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from anyvit.costs.budget import Budget
from anyvit.costs.units import TIME, read_amount
from anyvit.deploy.prediction import Answer, Answering, Asking, Vote
from anyvit.deploy.spread.coordinator import Coordinator
from anyvit.deploy.spread.security import Security
from anyvit.errors import SettingError
from anyvit.scaling.candidate import Result


class SpreadPredictor(Answering):
    """Answers with a model that is spread over boards."""

    ahead = 4  # while boards compute, the next pictures are read and sent

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.classes = coordinator.placed.classes
        self.preprocessing = coordinator.placed.preprocessing

    def close(self) -> None:
        """Hang up. The workers go on."""
        self.coordinator.close()

    @property
    def results(self) -> tuple[Result, ...]:
        return (self.coordinator.placed.result,)

    def asking(self, result: Result, *, worst: bool = False) -> Asking:
        """Boards normalize by themselves, so a picture travels as its pixels."""

        def ask(pixels: Tensor) -> Answer:
            asked = self.coordinator.ask(pixels)

            def answer() -> tuple[Tensor, Vote]:
                said = asked.answer()
                return said.logits.softmax(dim=1), Vote(said.voted, said.of, said.missing, said.known)

            return answer

        return ask

    def _pick(self, budget: str | Budget | None) -> Result:
        if budget is not None:
            raise SettingError("a model on boards is one candidate: leave the budget out, or spread another bundle.")
        return self.coordinator.placed.result


def open_placed(
    folder: str | Path,
    *,
    quorum: int | None = None,
    deadline: str | None = None,
    transport: str | None = None,
    token_file: str | None = None,
    tls_ca: str | None = None,
) -> SpreadPredictor:
    """Connect to the boards of a placed folder. Arguments and errors are those of `anyvit.load`."""
    seconds = None if deadline is None else read_amount(deadline, TIME, "ms, s, us, ns, min", name="deadline")
    coordinator = Coordinator.open(
        folder,
        quorum=1 if quorum is None else quorum,
        deadline=seconds,
        transport=transport or "grpc",
        security=Security.from_files(token_file=token_file, tls_ca=tls_ca),
    )
    return SpreadPredictor(coordinator)
