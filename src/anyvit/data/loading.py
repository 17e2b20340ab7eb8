"""Batches: in order for evaluation; for training an endless stream that starts at any step.

Everything random in training is a function of (seed, epoch, index), never of what a process did before. So a run that
is resumed at step p sees what it would have seen, whatever the number of workers.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anyvit.data.augmentation import Augmentation, seeded
from anyvit.data.dataset import Split
from anyvit.data.decode import BrokenImageError
from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import DataError, SettingError

Batch = tuple[Tensor, Tensor]
"""Images (B, 3, S, S) float32 and labels (B,) int64."""


def evaluation_batches(
    split: Split, preprocessing: Preprocessing, batch_size: int = 64, workers: int = 0
) -> Iterable[Batch]:
    """The images of a split in order; the last batch may be short.

    An image that turns out to be damaged (of large data sets only the headers were checked) is left out with a
    warning, so take the labels from the batches.
    """
    loader = DataLoader(
        _Evaluated(split, preprocessing),
        batch_size,
        num_workers=workers,
        collate_fn=_collate_whole,
        worker_init_fn=_leave_ctrl_c_to_the_parent,
        generator=torch.Generator(),
    )
    return _WholeBatches(loader)


def training_loader(
    split: Split,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    position: Callable[[], int],
    workers: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> DataLoader[Any]:
    """An endless stream of batches of augmented images.

    Args:
        split: What to learn from.
        preprocessing: As in evaluation.
        augmentation: How images are varied.
        batch_size: Images a batch; all of them where there are fewer.
        seed: Of the order and of the augmentation, 0 or more.
        position: The number of the first batch; asked whenever an iteration starts.
        workers: Processes that prepare batches, 0 for none; None picks: none for images in memory on a machine
            without a GPU, otherwise one a spare core, at most eight.
        share: Which share of each batch this is, and of how many equal ones.

    Raises:
        SettingError: A batch has no such shares.
    """
    workers = _default_workers(split) if workers is None else workers
    if (images := min(batch_size, len(split))) % share[1]:
        raise SettingError(f"batches of {images} images cannot be shared by {share[1]}: set another batch_size.")
    return DataLoader(
        _Augmented(split, preprocessing, augmentation, seed),
        batch_sampler=_Positions(len(split), batch_size, seed, position, share),
        num_workers=workers,
        worker_init_fn=_leave_ctrl_c_to_the_parent,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of its own: otherwise a number is taken from the common one
    )


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Whole batches an epoch, at least one; what is left over waits for another epoch."""
    return max(1, len(split) // batch_size)


class _Positions:
    """Endless batches of (epoch, index), beginning with batch number `position()`."""

    def __init__(
        self, length: int, batch_size: int, seed: int, position: Callable[[], int], share: tuple[int, int]
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.position = position
        self.share = share

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = max(1, self.length // self.batch_size)
        epoch, first = divmod(self.position(), batches)
        which, shares = self.share
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
            for place in range(first, batches):
                batch = order[place * self.batch_size : (place + 1) * self.batch_size]
                own = batch[which * len(batch) // shares : (which + 1) * len(batch) // shares]
                yield [(epoch, index) for index in own.tolist()]
            epoch, first = epoch + 1, 0


class _Augmented(Dataset[tuple[Tensor, int]]):
    """Augmented images and labels by (epoch, index)."""

    def __init__(self, split: Split, preprocessing: Preprocessing, augmentation: Augmentation, seed: int) -> None:
        self.split = split
        self.transform = augmentation.transform(preprocessing)
        self.seed = seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = place
        image, label = self._whole(index)
        seed = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)
        return seeded(self.transform, image, int(seed[0])), label

    def _whole(self, index: int) -> tuple[Image.Image, int]:
        """The image at `index`, or the next one that is not damaged."""
        for offset in range(len(self.split)):
            candidate = (index + offset) % len(self.split)
            try:
                return self.split.images.load(candidate), int(self.split.labels[candidate])
            except BrokenImageError as error:
                warnings.warn(f"{error} is damaged: another image takes its place", stacklevel=2)
        raise DataError("no image of the training split can be decoded any more. Were the files moved?")


class _Evaluated(Dataset[tuple[Tensor, int] | None]):
    """Preprocessed images and labels by index; None for a damaged image."""

    def __init__(self, split: Split, preprocessing: Preprocessing) -> None:
        self.split = split
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        try:
            return self.preprocessing(self.split.images.load(index)), int(self.split.labels[index])
        except BrokenImageError as error:
            warnings.warn(f"{error} is damaged and left out", stacklevel=2)
            return None


class _WholeBatches:
    """The batches of a loader that hold anything."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch in self.loader if batch is not None)


def _collate_whole(items: list[tuple[Tensor, int] | None]) -> Batch | None:
    whole = [item for item in items if item is not None]
    if not whole:
        return None
    images, labels = zip(*whole, strict=True)
    return torch.stack(images), torch.tensor(labels)


def _default_workers(split: Split) -> int:
    if split.images.in_memory and not torch.cuda.is_available():
        return 0
    trainings = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's: processes on this machine
    return min(8, max(1, (os.cpu_count() or 1) // trainings - 1))


def _leave_ctrl_c_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
