"""What is said of an image, and how images come to it: the same wherever the model runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anyvit.costs.budget import Budget
from anyvit.data.decode import decode, standardize
from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import DataError, SettingError
from anyvit.scaling.candidate import Result
from anyvit.scaling.spread.vote import Missing

Source = str | Path | bytes | Image.Image
"""An image: the path of a file, the bytes of one, or what Pillow has opened."""

Named = tuple[str, Callable[[], Image.Image]]
"""An image that is not read yet: what the user knows it by, and how to load it upright and in RGB."""


@dataclass(frozen=True, slots=True)
class Vote:
    """Who an answer of several boards comes from.

    Attributes:
        voted: Groups, or sub-models, that answered in time,
        of: of so many.
        missing: The boards that did not, and why.
        known: The accuracy known with that many missing, if it is.
    """

    voted: int
    of: int
    missing: Mapping[str, str]
    known: Missing | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says about an image.

    Attributes:
        name: What the user knows the image by.
        label: The most probable class; None where the image cannot be read.
        probability: Its probability.
        top: The most probable classes with their probabilities, falling.
        error: Why the image cannot be read, where it cannot.
        vote: Who answered, where the model is spread over boards.
    """

    name: str
    label: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    vote: Vote | None = None

    def to_json(self) -> dict[str, Any]:
        """Without a vote where there is none."""
        return {key: value for key, value in asdict(self).items() if key != "vote" or value}


Answer = Callable[[], tuple[Tensor, Vote | None]]
"""Waits for the probabilities (B, classes) of a batch that was asked, and who they come from."""


Asking = Callable[[Tensor], Answer]
"""Asks a batch of pixels, uint8 (B, 3, S, S), as `pixels_of` makes them."""


class Answering(ABC):
    """Answers for images. Whoever runs a model says how a batch of pixels is asked.

    Several threads may ask at a time. It may be used in a `with`, which closes it.
    """

    ahead = 0
    """Batches that are asked before the answer to the first of them is waited for."""

    classes: tuple[str, ...]
    preprocessing: Preprocessing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027  (what runs here holds nothing open)
        """Release connections, where there are any."""

    @property
    @abstractmethod
    def results(self) -> tuple[Result, ...]:
        """The candidates that can answer, with their figures."""

    @abstractmethod
    def asking(self, result: Result, *, worst: bool = False) -> Asking:
        """How a candidate is asked. What it needs for that is made when this is called first.

        Args:
            result: The candidate.
            worst: Of a cascade: let every image go on to its large part.
        """

    def release(self, result: Result) -> None:  # noqa: B027  (what runs here holds nothing of it)
        """Forget what a candidate needs, for memory."""

    @abstractmethod
    def _pick(self, budget: str | Budget | None) -> Result:
        """The most accurate candidate inside the budget; without a budget the chosen one."""

    def predict(
        self,
        images: Source | Iterable[Source],
        *,
        budget: str | Budget | None = None,
        top_k: int = 1,
        batch_size: int = 1,
    ) -> list[Prediction]:
        """An answer for each image, in order; for one that cannot be read, why.

        Args:
            images: Paths, bytes of image files, or Pillow images; one or many.
            budget: Answer with the most accurate candidate inside it. None: with the chosen one.
            top_k: How many classes to name.
            batch_size: Images a call of the model.

        Raises:
            BudgetError: No candidate is inside `budget`.
            SettingError: `top_k` or `batch_size` is below 1, or a model on boards is given a budget.
            SpreadError: Fewer boards than the quorum answer.
        """
        sources = [images] if isinstance(images, str | Path | bytes | Image.Image) else images
        named = (_named(source, index) for index, source in enumerate(sources))
        return list(self.answers(named, budget=budget, top_k=top_k, batch_size=batch_size))

    def answers(
        self, images: Iterable[Named], *, budget: str | Budget | None = None, top_k: int = 1, batch_size: int = 1
    ) -> Iterator[Prediction]:
        """As `predict`, one after the other: images are loaded when their turn comes, a batch at a time."""
        for name, value in (("top_k", top_k), ("batch_size", batch_size)):
            if value < 1:
                raise SettingError(f"{name} is {value}: it must be at least 1.")
        ask = self.asking(self._pick(budget))
        remaining, asked = iter(images), deque[tuple[list[tuple[str, Tensor | str]], Answer | None]]()
        while chunk := list(islice(remaining, batch_size)):
            loaded = [(name, self._load(name, load)) for name, load in chunk]
            inputs = [tensor for _, tensor in loaded if isinstance(tensor, Tensor)]
            asked.append((loaded, ask(torch.stack(inputs)) if inputs else None))
            if len(asked) > self.ahead:
                yield from self._predictions(*asked.popleft(), top_k)
        for batch in asked:
            yield from self._predictions(*batch, top_k)

    def _load(self, name: str, load: Callable[[], Image.Image]) -> Tensor | str:
        try:
            return pixels_of(load(), self.preprocessing)
        except DataError as error:
            words = str(error)
            return words if name in words else f"{name} ({words})"

    def _predictions(
        self, loaded: list[tuple[str, Tensor | str]], answer: Answer | None, top_k: int
    ) -> Iterator[Prediction]:
        probabilities, vote = answer() if answer else ((), None)
        rows = iter(probabilities)
        for name, tensor in loaded:
            if isinstance(tensor, Tensor):
                yield self._prediction(name, next(rows), vote, top_k)
            else:
                yield Prediction(name, error=tensor)

    def _prediction(self, name: str, probabilities: Tensor, vote: Vote | None, top_k: int) -> Prediction:
        top = top_of(probabilities, self.classes, top_k)
        return Prediction(name, *top[0], top, vote=vote)


def pixels_of(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """The pixels that a model sees of an upright RGB image, uint8 (3, S, S): a quarter of the bytes of its input."""
    return torch.from_numpy(np.array(preprocessing.crop(image))).permute(2, 0, 1)


def top_of(probabilities: Tensor, classes: Sequence[str], top_k: int) -> tuple[tuple[str, float], ...]:
    """The most probable classes of an image, (K,), with their probabilities, falling."""
    values, indices = probabilities.topk(min(top_k, len(classes)))
    return tuple(zip((classes[index] for index in indices.tolist()), values.tolist(), strict=True))


def _named(source: Source, index: int) -> Named:
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"image {index}", partial(standardize, source)
    if isinstance(source, bytes):
        return f"image {index}", partial(decode, source)
    return str(source), partial(decode, Path(source))
