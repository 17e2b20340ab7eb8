"""Any classification data set of torchvision, by name: `torchvision:CIFAR10`, `torchvision:SVHN?root=/data`.

What stands after `?` goes to the constructor. The folder is `root`, by default ~/.cache/anyvit; what is not there is
downloaded.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anyvit.data.decode import standardize
from anyvit.data.formats.format import Found, Labelled
from anyvit.data.images import FileImages, Images, hash_pixels
from anyvit.errors import DataError, unknown

DEFAULT_ROOT = "~/.cache/anyvit"
_PREFIX = "torchvision:"
_SPLIT_VALUES = {"train": ("train", "trainval", "train-standard"), "val": ("val", "valid"), "test": ("test",)}
_UNMIRRORED = {"EMNIST", "GTSRB", "KMNIST", "MNIST", "Omniglot", "QMNIST", "RenderedSST2", "SEMEION", "SVHN", "USPS"}


class TorchvisionSet:
    """The prefix may be left out where no file or folder has the name."""

    name = "torchvision"
    summary = "torchvision:NAME?root=FOLDER, any classification data set of torchvision, such as torchvision:CIFAR10"

    def opens(self, source: str) -> bool:
        return source.startswith(_PREFIX) or source.partition("?")[0].lower() in _names()

    def read(self, source: str) -> Found:
        name, _, query = source.removeprefix(_PREFIX).partition("?")
        names = _names()
        if name.lower() not in names:
            raise DataError(unknown("torchvision data set", name, names.values()))
        name = names[name.lower()]
        parts = _open_splits(name, _arguments(source, query))
        found = {split: _labelled(f"{name} {split}", dataset) for split, dataset in parts.items()}
        return Found(found, mirrored=name not in _UNMIRRORED)


class DatasetImages:
    """The images of a torchvision data set that does not keep them as files."""

    in_memory = False

    def __init__(self, dataset: Any, title: str) -> None:
        self.dataset = dataset
        self.title = title

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def load(self, index: int) -> Image.Image:
        image = self.dataset[index][0]
        if not isinstance(image, Image.Image):
            raise DataError(f"{self.title} holds {type(image).__name__}, not images.")
        return standardize(image)

    def size(self, index: int) -> tuple[int, int]:
        return self.load(index).size

    def content_hash(self, index: int) -> int:
        return hash_pixels(np.asarray(self.load(index)))


def _names() -> dict[str, str]:
    """The names of torchvision's data sets, by their lower-case form."""
    from torchvision import datasets

    return {name.lower(): name for name in datasets.__all__ if isinstance(getattr(datasets, name), type)}


def _arguments(source: str, query: str) -> dict[str, Any]:
    arguments = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals:
            raise DataError(f"{source!r}: {part!r} is no argument. Write torchvision:NAME?root=FOLDER&argument=value.")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value  # a text without quotes
    return arguments


def _open_splits(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The data sets by split; "train" alone where there are no splits, or where the user names one."""
    from torchvision import datasets

    parameters = inspect.signature(getattr(datasets, name)).parameters
    if "train" in parameters and "train" not in arguments:
        return {s: _construct(name, {**arguments, "train": s == "train"}) for s in ("train", "test")}
    if "split" not in parameters or "split" in arguments:
        return {"train": _construct(name, arguments)}
    opened = {}
    for split, values in _SPLIT_VALUES.items():
        for value in values:
            try:
                opened[split] = _construct(name, {**arguments, "split": value})
            except ValueError:  # torchvision's word for a split that the data set does not have
                continue
            break
    if "train" not in opened:
        raise DataError(f"torchvision {name} has no split called train. Name one: torchvision:{name}?split=NAME.")
    return opened


def _construct(name: str, arguments: dict[str, Any]) -> Any:
    """Open the data set from its folder, or download it where it is not there."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    parameters = inspect.signature(kind).parameters
    if "root" in parameters:
        arguments = {"root": DEFAULT_ROOT, **arguments}
        arguments["root"] = str(Path(arguments["root"]).expanduser())
    downloads = "download" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        try:
            return kind(**arguments, **({"download": False} if downloads else {}))
        except (RuntimeError, OSError):
            if not downloads:
                raise
            return kind(**arguments, download=True)
    except TypeError as error:
        raise DataError(f"torchvision {name} cannot be opened with {arguments}: {error}.") from error
    except (RuntimeError, OSError, ImportError) as error:
        raise DataError(
            f"torchvision {name} is not in {arguments.get('root')} and cannot be downloaded ({error}). "
            f"Put it there, or name its folder: torchvision:{name}?root=FOLDER."
        ) from error


def _labelled(title: str, dataset: Any) -> Labelled:
    """The images of a data set as files where it keeps them so, and the names of their classes."""
    paths, targets = _files(dataset)
    images: Images = FileImages([Path(path) for path in paths]) if paths else DatasetImages(dataset, title)
    if not paths:
        targets = _targets(dataset)
    if not all(isinstance(target, int) and target >= 0 for target in targets):
        raise DataError(f"{title} is not for classification: its targets are no classes.")
    names = _class_names(dataset, 1 + max(targets, default=-1))
    return Labelled(images, [names[target] for target in targets])


def _files(dataset: Any) -> tuple[Sequence[str | Path], list[Any]]:
    pairs = getattr(dataset, "samples", None) or getattr(dataset, "_samples", None) or []
    if not pairs and hasattr(dataset, "_image_files"):
        pairs = list(zip(dataset._image_files, dataset._labels or [], strict=False))
    if not pairs or not isinstance(pairs[0][0], str | Path):
        return [], []
    return [path for path, _ in pairs], [target for _, target in pairs]


def _targets(dataset: Any) -> list[Any]:
    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            return values.tolist() if hasattr(values, "tolist") else list(values)
    return [dataset[index][1] for index in range(len(dataset))]


def _class_names(dataset: Any, count: int) -> list[str]:
    given = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or range(count)
    names = [", ".join(name) if isinstance(name, tuple) else str(name) for name in given]
    return [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names)]
