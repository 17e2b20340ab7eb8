"""A bundle that answers: images in, labels out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from anyvit.costs.budget import Budget
from anyvit.data.decode import decode, standardize
from anyvit.deploy.bundle import Bundle
from anyvit.errors import DataError, SettingError
from anyvit.protocols import Runner
from anyvit.scaling.candidate import Result

Source = str | Path | bytes | Image.Image
"""An image: the path of a file, the bytes of one, or what Pillow has opened."""

Named = tuple[str, Callable[[], Image.Image]]
"""An image that is not read yet: what the user knows it by, and how to load it upright and in RGB."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says about an image.

    Attributes:
        name: What the user knows the image by.
        label: The most probable class; None where the image cannot be read.
        probability: Its probability.
        top: The most probable classes with their probabilities, falling.
        error: Why the image cannot be read, where it cannot.
    """

    name: str
    label: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None


class Predictor:
    """Answers with the candidates of a bundle, on as many threads as they were measured with.

    A runner is prepared when a budget first asks for it, and kept; all share one set of weights.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._runners: dict[str, Runner] = {}

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
            SettingError: `top_k` or `batch_size` is below 1.
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
        runner = self._runner(self.bundle.pick(budget))
        remaining = iter(images)
        while chunk := list(islice(remaining, batch_size)):
            loaded = [(name, self._load(name, load)) for name, load in chunk]
            inputs = [tensor for _, tensor in loaded if isinstance(tensor, Tensor)]
            probabilities = iter(self._run(runner, torch.stack(inputs)) if inputs else ())
            for name, tensor in loaded:
                if isinstance(tensor, Tensor):
                    yield self._prediction(name, next(probabilities), top_k)
                else:
                    yield Prediction(name, error=tensor)

    def _runner(self, result: Result) -> Runner:
        if result.id not in self._runners:
            self._runners[result.id] = self.bundle.runner(result)
        return self._runners[result.id]

    def _load(self, name: str, load: Callable[[], Image.Image]) -> Tensor | str:
        try:
            return self.bundle.preprocessing(load())
        except DataError as error:
            words = str(error)
            return words if name in words else f"{name} ({words})"

    def _run(self, runner: Runner, images: Tensor) -> Tensor:
        with threads(self.bundle.conditions.threads):
            return runner(images)

    def _prediction(self, name: str, probabilities: Tensor, top_k: int) -> Prediction:
        values, indices = probabilities.topk(min(top_k, len(self.bundle.classes)))
        labels = (self.bundle.classes[index] for index in indices.tolist())
        top = tuple(zip(labels, values.tolist(), strict=True))
        return Prediction(name, *top[0], top)


def load(bundle: str | Path) -> Predictor:
    """Open a bundle to answer with it.

    Raises:
        BundleError: `bundle` is damaged, newer than this AnyViT reads, or no bundle.
    """
    opened = Bundle.load(bundle)
    opened.model()  # damaged weights are said now, not at the first image
    return Predictor(opened)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch computes on `count` threads inside, on as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _named(source: Source, index: int) -> Named:
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"image {index}", partial(standardize, source)
    if isinstance(source, bytes):
        return f"image {index}", partial(decode, source)
    return str(source), partial(decode, Path(source))
