"""A placed folder that answers: images in, labels out, by way of the boards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anyvit.costs.budget import Budget
from anyvit.costs.units import TIME, read_amount
from anyvit.deploy.prediction import Answer, Answering, Vote
from anyvit.deploy.spread.coordinator import Coordinator
from anyvit.deploy.spread.security import Security
from anyvit.errors import SettingError


class SpreadPredictor(Answering):
    """Answers with a model that is spread over boards."""

    ahead = 4  # while boards compute, the next pictures are read and sent

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.classes = coordinator.placed.classes

    def close(self) -> None:
        """Hang up. The workers go on."""
        self.coordinator.close()

    def _input(self, image: Image.Image) -> Tensor:
        """Pixels (3, S, S): boards normalize by themselves, so a picture travels in a quarter of the bytes."""
        pixels = np.array(self.coordinator.placed.preprocessing.crop(image))
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _asking(self, budget: str | Budget | None) -> Callable[[Tensor], Answer]:
        if budget is not None:
            raise SettingError("a model on boards is one candidate: leave the budget out, or spread another bundle.")

        def ask(images: Tensor) -> Answer:
            asked = self.coordinator.ask(images)

            def answer() -> tuple[Tensor, Vote]:
                said = asked.answer()
                return said.logits.softmax(dim=1), Vote(said.voted, said.of, said.missing, said.known)

            return answer

        return ask


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
