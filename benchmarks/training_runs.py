"""What the training benchmarks share: a model trained for a given processor time, and what it is worth on the test.

Processor time, not time on the wall: the steps of a run are set beforehand, from the measured processor time of a
step, so that several runs can share a machine and still get the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from anyvit.data import DataSet
from anyvit.data.preprocessing import Preprocessing
from anyvit.protocols import Event
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.pricing import Conditions
from anyvit.scaling.scoring import score
from anyvit.scaling.workshop import Workshop
from anyvit.training.objectives import Objective
from anyvit.training.recipes import RECIPES
from anyvit.training.trainer import Training, train

FULL, PLAIN = Step("heads"), Step("torch")


@dataclass(frozen=True)
class Runs:
    """Trainings on one data set with one recipe; each keeps its state in `folder`, and a killed one resumes."""

    dataset: DataSet
    recipe: str
    preprocessing: Preprocessing
    folder: Path
    seed: int = 0

    def train(self, name: str, model: nn.Module, objective: Objective, cpu_seconds: float) -> tuple[Training, dict]:
        """Train `model` for `cpu_seconds`, and say how it went."""
        plan = self._plan(name, model, objective, cpu_seconds)
        begun = time.process_time()
        training = self._train(model, objective, self.folder / name, plan["epochs"], progress=tell(name))
        return training, {
            **plan,
            "steps": training.steps,
            "precision": training.precision,
            "cpu_seconds": time.process_time() - begun,
        }

    def accuracies(self, model: nn.Module, heads: tuple[int | None, ...]) -> dict[str, float]:
        """Test accuracy of subnetworks by number of heads; None is the model as it is."""
        steps = [(Step("heads", {"heads": k}),) if k else () for k in heads]
        results = [Result(Candidate(levers, PLAIN)) for levers in steps]
        scored = score(
            Workshop(model, Conditions(self.preprocessing.image_size).example()),
            results,
            self.dataset.splits["test"],
            self.preprocessing,
            self.dataset.classes,
        )
        return {str(k): result.accuracy or 0.0 for k, result in zip(heads, scored, strict=True)}

    def _plan(self, name: str, model: nn.Module, objective: Objective, cpu_seconds: float) -> dict[str, float]:
        """How many epochs fit, measured once: the difference of a longer and a shorter training, each of few steps."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            per_epoch = len(self.dataset.splits["train"]) // RECIPES[self.recipe].batch_size
            spent = []
            for steps in (20, 100):
                with tempfile.TemporaryDirectory() as folder:
                    begun = time.process_time()
                    self._train(model, objective, Path(folder), steps / per_epoch)
                    spent.append(time.process_time() - begun)
            seconds_a_step = (spent[1] - spent[0]) / 80
            file.parent.mkdir(parents=True, exist_ok=True)
            epochs = cpu_seconds / seconds_a_step / per_epoch
            file.write_text(json.dumps({"epochs": epochs, "cpu_seconds_a_step": seconds_a_step}))
        return json.loads(file.read_text())

    def _train(self, model: nn.Module, objective: Objective, folder: Path, epochs: float, progress=None) -> Training:
        return train(
            model,
            self.dataset,
            objective=objective,
            recipe=RECIPES[self.recipe],
            preprocessing=self.preprocessing,
            folder=folder,
            epochs=epochs,
            seed=self.seed,
            **({"progress": progress} if progress else {}),
        )


def tell(name: str):
    """Progress once in half a minute, a line each."""
    last = [0.0]

    def tell(event: Event) -> None:
        if event.done is not None and time.monotonic() - last[0] > 30:
            last[0] = time.monotonic()
            print(f"{name}: {event.done:.0%} {dict(event.figures)}", flush=True)

    return tell


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what all of these benchmarks take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--minutes", type=float, required=True, help="processor time of a run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, required=True, help="where runs keep their state")
    return parser
