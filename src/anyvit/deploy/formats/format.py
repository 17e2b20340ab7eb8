"""What an export format is: something that writes a model together with all that using it takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Texts:
    """What a model carries besides its weights.

    Attributes:
        labels: The classes, a JSON list in the order of the probabilities.
        preprocessing: From image to input, a JSON object.
        readme: What the model is and how it is used.
        script: A Python program that uses it.
    """

    labels: str
    preprocessing: str
    readme: str
    script: str

    def by_name(self) -> dict[str, str]:
        return asdict(self)


class Format(Protocol):
    """One way to write a model so that it runs without AnyViT."""

    name: str
    target: str  # the usual name of what is written; with a suffix it is a file, otherwise a folder
    model: str  # where in a folder the model is; empty where the target is a file
    how_to_read: str  # a shell command that prints the script, which names the target as {target}

    def write(self, model: nn.Module, example: Tensor, texts: Texts, target: Path) -> None:
        """Write `model`, from images (B, C, H, W) like `example` to probabilities (B, K), for any B."""
