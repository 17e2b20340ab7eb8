"""The plain types that rooms exchange: no PyTorch is loaded here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

Setting = Mapping[str, Any]
"""How a lever or a backend is set: plain data that survives JSON."""

UNCHANGED: Setting = {}
"""The setting that leaves a model as it is."""


class Stage(IntEnum):
    """The order in which levers compose."""

    SHAPE = 1
    PRUNE = 2
    MERGE = 3
    TOKENS = 4
    WRAP = 5


class Needs(Enum):
    """What a lever or backend must be given before a setting can be used."""

    NOTHING = "nothing"
    IMAGES = "images"
    LABELS = "labels"
    TRAINING = "training"


class Runner(Protocol):
    """A model ready to answer: the preprocessed, normalized float32 batch (B, C, H, W) in, probabilities (B, K) out."""

    def __call__(self, images: Tensor, /) -> Tensor: ...


class Lever(Protocol):
    """One way to trade cost against accuracy inside the model. Levers compose in the order of their stages."""

    name: str
    stage: Stage

    def needs(self, setting: Setting) -> Needs:
        """What must be given before `setting` can be applied."""

    def why_not(self, model: nn.Module) -> str | None:
        """The reason why this lever does not go with `model`, or None."""

    def before_training(self, model: nn.Module, setting: Setting) -> nn.Module:
        """The trainable form of `model`; its `settings` list what it was trained for."""

    def settings(self, model: nn.Module) -> Sequence[Setting]:
        """UNCHANGED first, then from the mildest to the strongest."""

    def conflicts(self) -> Mapping[str, str]:
        """Names of levers that this one does not go with, and why."""

    def apply(self, model: nn.Module, setting: Setting, *, images: Tensor | None = None) -> nn.Module:
        """A smaller model of the same contract. It may share storage and never changes what it is given."""


class Backend(Protocol):
    """How a model runs: a runtime together with a precision."""

    name: str

    def why_not(self, model: nn.Module) -> str | None:
        """The reason why `model` cannot run here, or None."""

    def settings(self, device: Device) -> Sequence[Setting]:
        """The precisions worth trying on `device` with what is installed, the most exact first: UNCHANGED is float32.

        Every one may carry `threads` too, above 1.
        """

    def absent(self, device: Device) -> str | None:
        """What else an extra or a tool would add on `device`, and how to get it, or None."""

    def needs(self, setting: Setting) -> Needs:
        """What must be given before `setting` can be prepared."""

    def prepare(self, model: nn.Module, setting: Setting, example: Tensor, *, images: Tensor | None = None) -> Runner:
        """A runner of `model` for batches like `example`."""

    def save(self, runner: Runner, folder: Path) -> None:
        """Write what need not be built again when the runner is loaded."""

    def load(self, model: nn.Module, setting: Setting, folder: Path) -> Runner:
        """The runner that `save` wrote."""


@dataclass(frozen=True, slots=True)
class Device:
    """The machine that a figure was measured on. Figures are unproven on any other."""

    kind: str  # as PyTorch names it: "cpu", "cuda"
    processor: str
    cores: int
    features: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits over everything above."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        torch_version = self.versions.get("torch", "?")
        return f"{self.processor} ({self.cores} cores, {self.kind}, torch {torch_version})"


@dataclass(frozen=True, slots=True)
class Event:
    """From a running job: a piece of news, or, where `done` is given, how far a stage is.

    Attributes:
        stage: What the job is at: "data", "train", …
        message: The news, or what the stage is working on.
        done: The share of the stage in 0..1.
        seconds_left: About how long the stage still takes.
        figures: Losses, accuracies, images per second.
    """

    stage: str
    message: str = ""
    done: float | None = None
    seconds_left: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


Progress = Callable[[Event], None]
"""How a job tells its caller where it is. Jobs call it often; showing it is the caller's business."""


def silent(event: Event) -> None:
    """The progress callback that shows nothing."""
