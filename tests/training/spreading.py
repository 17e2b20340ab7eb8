"""Trainings that several processes share: run by tests.processes."""

import dataclasses
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import AnyViTError, Interrupted, SettingError
from anyvit.models.hsvit import HSViT
from anyvit.scaling.spread.parallel import parallelize
from anyvit.training.objectives.classification import Classification
from anyvit.training.ranks import count, joined, rank
from anyvit.training.recipes import RECIPES
from anyvit.training.trainer import train
from tests.training.conftest import tinted_data

RECIPE = dataclasses.replace(
    RECIPES["scratch-tiny"],
    batch_size=12,
    lr=3e-4,  # AdamW makes whole steps of what is rounding alone
    mixing=0.0,
    clip=0.1,
    ema_decay=0.9,
    precision="float32",
    threads=1,
)
EPOCHS = 3


def tiny(**changes):
    torch.manual_seed(0)
    shape = {"img_size": 8, "kernels": (6, 12), "pools": (2, 1), "num_groups": 4, "embed_dim": 8, "num_heads": 2}
    return HSViT(**{**shape, "num_classes": 4, "drop_rate": 0.0, "depth": 1, **changes})


class Pressing(Classification):
    """Its `rank` gets a signal in the `step`-th step."""

    def __init__(self, rank, step, number):
        vars(self).update(rank=int(rank), step=int(step), number=int(number))

    def loss(self, model, images, targets, *, step):
        if step == self.step and rank() == self.rank:
            os.kill(os.getpid(), self.number)
        return super().loss(model, images, targets, step=step)

    def __repr__(self):
        return repr(Classification())


def run(folder, trunk="boards", rows=1, *, objective=None, **changes):
    """A training in this process and its like, or in it alone; its result lies in the folder."""
    together = {"parallelize": partial(parallelize, trunk=trunk), "rows": int(rows)} if count() > 1 else {}
    folder = Path(folder)
    arguments = {"recipe": RECIPE, "epochs": EPOCHS, "workers": 0, "validate": validate, **changes}
    training = train(
        tiny(),
        tinted_data(),
        objective=objective or Classification(),
        preprocessing=Preprocessing(8),
        folder=folder / ("run" if rank() == 0 else "never"),
        **together,
        **arguments,
    )
    assert not (folder / "never").exists()
    losses = torch.tensor([entry["loss"] for entry in training.history])
    save_file({**training.model.state_dict(), "losses": losses}, folder / f"result-{rank()}.safetensors")


def validate(model, step):
    assert rank() == 0
    assert isinstance(model, HSViT)
    assert len(model.groups) == 4
    return {"accuracy/known": step / 100, "mean": torch.stack([p.mean() for p in model.parameters()]).mean()}


def whole(folder, trunk="boards", rows=1):
    with joined():
        run(folder, trunk, rows)


def alone(folder):
    """In one process, without torchrun."""
    run(folder)


def stopped(folder, number, pressed, trunk="boards", rows=1):
    """One of the processes is asked to stop in mid-epoch: all stop, after the same step."""
    with joined(), pytest.raises(Interrupted, match="stopped after 9 steps. The same command resumes it."):
        run(folder, trunk, rows, objective=Pressing(pressed, 8, number))


def by_the_clock(folder):
    """Clocks differ, decisions do not."""
    with joined():
        run(folder, epochs=None, seconds=3.0)


def half_precision(folder):
    with joined():
        run(folder, recipe=dataclasses.replace(RECIPE, precision="bfloat16"))


class Diverging(Classification):
    def __init__(self, rank):
        self.rank = int(rank)

    def loss(self, model, images, targets, *, step):
        loss, figures = super().loss(model, images, targets, step=step)
        return loss * (float("nan") if step == 4 and rank() == self.rank else 1), figures


def diverging(folder):
    """In one row of two: both processes say so, and none waits for the other."""
    with joined(), pytest.raises(SettingError, match="diverged: at step 4 the loss is nan"):
        run(folder, rows=2, objective=Diverging(1))


class Failing(Classification):
    def loss(self, model, images, targets, *, step):
        if step == 4 and rank() == 1:
            raise AnyViTError("the second process has no memory left")
        return super().loss(model, images, targets, step=step)


def failing(folder):
    """What goes wrong in one process is known to all, and said once."""
    with pytest.raises(AnyViTError, match="the second process has no memory left") as failed, joined():
        run(folder, objective=Failing())
    assert failed.value.told == (rank_before() == 0)


class Killed(Classification):
    def loss(self, model, images, targets, *, step):
        if step == 4 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, images, targets, step=step)


def killed(folder):
    """The first process of two says that the other one is lost."""
    with pytest.raises(AnyViTError, match="another process of the run is lost.* The same command resumes") as failed:  # noqa: SIM117
        with joined():
            run(folder, objective=Killed())
    assert not failed.value.told
    (Path(folder) / "said").touch()


def unlike(folder):
    with pytest.raises(SettingError, match="process 1 trains with other lr than the first") as failed, joined():
        run(folder, recipe=dataclasses.replace(RECIPE, lr=1e-3 * (rank() + 1)))
    assert failed.value.told == (rank_before() == 0)


def rank_before():
    """The number of this process, when it has left the others."""
    return int(os.environ["RANK"])
