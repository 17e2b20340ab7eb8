import csv
import dataclasses
import logging
import os
import signal
import time
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anyvit.data.loading import evaluation_batches
from anyvit.errors import AnyViTError, Interrupted, SettingError
from anyvit.training import run as run_module
from anyvit.training import trainer as trainer_module
from anyvit.training.checkpoint import LAST, PREVIOUS, read_checkpoint
from anyvit.training.objectives.classification import Classification
from anyvit.training.objectives.elastic import ElasticClassification
from anyvit.training.recipes import RECIPES
from anyvit.training.trainer import train

RECIPE = dataclasses.replace(RECIPES["scratch-tiny"], batch_size=16, lr=5e-3, mixing=0, drop_path=0.1)


@pytest.fixture
def start(model, data, preprocessing, tmp_path):
    """`train` with defaults."""

    def start(**changes):
        arguments = {
            "objective": ElasticClassification(),
            "recipe": RECIPE,
            "preprocessing": preprocessing,
            "folder": tmp_path / "run",
            "epochs": 3,
            "workers": 0,
        }
        return train(changes.pop("model", model), changes.pop("data", data), **{**arguments, **changes})

    return start


def weights(training):
    return training.model.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_learns_and_leaves_the_model_it_is_given(start, model, data, preprocessing):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def validate(averaged, step):
        assert not averaged.training
        (images, labels), *_ = evaluation_batches(data.splits["val"], preprocessing)
        with torch.inference_mode():
            answers = {heads: averaged(images, heads=heads).argmax(1) for heads in (1, 3)}
        return {f"accuracy/{heads}": (answer == labels).float().mean() for heads, answer in answers.items()}

    training = start(epochs=30, validate=validate)
    assert same(before, model.state_dict())
    assert training.steps == 30 * 4
    assert training.precision == "32-true"
    assert training.history[-1]["accuracy/3"] > 0.9
    assert training.history[-1]["accuracy/1"] > 0.5
    assert not training.model.training
    assert type(training.model) is type(model)
    assert len(training.history) == 20


def test_history_is_logged_and_told(start, tmp_path):
    events = []
    training = start(validate=lambda model, step: {"accuracy/3": step / 100}, progress=events.append)
    assert [(entry["step"], entry["epoch"]) for entry in training.history] == [(4, 1), (8, 2), (12, 3)]
    assert set(training.history[0]) == {
        "step", "epoch", "seconds", "lr", "loss", "accuracy", "images_per_second", "accuracy/3",
    }  # fmt: skip
    with (tmp_path / "run/logs/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == training.history
    assert list((tmp_path / "run/logs").glob("events.out.tfevents.*"))
    assert events[-1].stage == "train"
    assert (events[-1].done, events[-1].seconds_left) == (1, 0)
    assert set(events[-1].figures) == {"loss", "accuracy", "images_per_second", "accuracy/3"}


def test_nothing_of_lightning_is_seen(start, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start()
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lightning.pytorch").level != logging.ERROR
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_finished_training_is_returned_at_once(start):
    first = start()
    again = start(validate=lambda model, step: pytest.fail("there is nothing to validate"))
    assert same(weights(first), weights(again))
    assert (again.steps, again.history, again.precision) == (first.steps, first.history, first.precision)


def test_weights_follow_from_the_seed_alone(start, tmp_path):
    first = start(folder=tmp_path / "a")
    torch.rand(3)
    state = torch.get_rng_state()
    second = start(folder=tmp_path / "b", validate=lambda model, step: {"chance": float(torch.rand(()))})
    assert torch.equal(torch.get_rng_state(), state)
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(start(folder=tmp_path / "c", seed=1)))


@pytest.mark.parametrize("moment", ["step", "validation"])
def test_ctrl_c_is_resumed_exactly(start, tmp_path, moment):
    def press(*_):
        os.kill(os.getpid(), signal.SIGINT)

    class Pressing(Classification):
        def loss(self, model, images, targets, *, step):
            if step == 6:  # in mid-epoch: this step is finished first
                press()
            return super().loss(model, images, targets, step=step)

        def __repr__(self):
            return repr(Classification())

    def validate(model, step):
        if moment == "validation" and step == 8:
            press()
        return {}

    whole = start(folder=tmp_path / "whole", objective=Classification())
    with pytest.raises(Interrupted, match=rf"stopped after {7 if moment == 'step' else 8} steps.* same command"):
        start(objective=Pressing() if moment == "step" else Classification(), validate=validate)
    seen = []
    resumed = start(objective=Classification(), validate=lambda model, step: seen.append(step) or {})
    assert seen == [8, 12]
    assert same(weights(whole), weights(resumed))
    for entry, other in zip(whole.history, resumed.history, strict=True):
        assert [entry[name] for name in ("step", "loss", "accuracy", "lr")] == [
            other[name] for name in ("step", "loss", "accuracy", "lr")
        ]


def test_sigterm_is_resumed_too(start, tmp_path):
    with pytest.raises(Interrupted, match="stopped after 4 steps"):
        start(validate=lambda model, step: os.kill(os.getpid(), signal.SIGTERM) or {})
    assert same(weights(start()), weights(start(folder=tmp_path / "whole")))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_divergence_is_said_and_nothing_is_lost(start, tmp_path, bad):
    class Diverging(ElasticClassification):
        def loss(self, model, images, targets, *, step):
            loss, figures = super().loss(model, images, targets, step=step)
            return loss * (bad if step == 6 else 1), figures

    with pytest.raises(SettingError, match=r"diverged: at step 6 the loss is (nan|inf).* lower lr than 0.005"):
        start(objective=Diverging())
    assert read_checkpoint(tmp_path / "run")["global_step"] == 4


def test_gradient_that_is_not_finite_does_not_reach_the_weights(start):
    class Rooted(Classification):
        def loss(self, model, images, targets, *, step):
            logits = model(images)
            return F.cross_entropy(logits, targets) + (logits[0, 0] - logits[0, 0]).sqrt(), {}

    with pytest.raises(SettingError, match="at step 0 the norm of the gradient is nan"):
        start(objective=Rooted())


def test_full_disk_is_said_and_resumed(start, tmp_path):
    folder = tmp_path / "run"

    def fill(model, step):
        if step == 8:
            (folder / f".partial-{LAST}").symlink_to("/dev/full")
        return {}

    with pytest.raises(AnyViTError, match=f"{folder} cannot be written to: No space left.*the same command resumes"):
        start(validate=fill)
    assert read_checkpoint(folder)["global_step"] == 4
    assert same(weights(start()), weights(start(folder=tmp_path / "whole")))


def test_damaged_checkpoint_falls_back_to_the_one_before(start, tmp_path):
    def stop(model, step):
        if step == 12:
            raise Interrupted
        return {}

    with pytest.raises(Interrupted):
        start(validate=stop)
    (tmp_path / "run" / LAST).write_bytes((tmp_path / "run" / LAST).read_bytes()[:-100])
    assert read_checkpoint(tmp_path / "run")["global_step"] == 8
    assert (tmp_path / "run" / PREVIOUS).exists()
    assert same(weights(start()), weights(start(folder=tmp_path / "whole")))


def test_other_settings_do_not_resume(start):
    start()
    with pytest.raises(SettingError, match="holds a training with epochs 3, not 4"):
        start(epochs=4)
    with pytest.raises(SettingError, match=r"holds a training with lr 0.005, not 0.001"):
        start(recipe=dataclasses.replace(RECIPE, lr=1e-3))


@pytest.mark.slow
def test_clock_is_kept_over_sessions(start, tmp_path):
    slow = {"validate": lambda model, step: time.sleep(0.1) or {}, "epochs": None}
    training = start(seconds=2.0, **slow)
    assert training.history[-1]["seconds"] > 1
    assert training.history[-1]["lr"] < 0.1 * RECIPE.lr

    def stop(model, step):
        os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        start(seconds=2.0, folder=folder, epochs=None, validate=stop)
    before = read_checkpoint(folder)["callbacks"]["run"]["elapsed"]
    resumed = start(seconds=2.0, folder=folder, **slow)
    assert resumed.history[1]["seconds"] > before > 0


def test_recipe_says_how_long_where_nobody_else_does(start):
    assert start(epochs=None, recipe=dataclasses.replace(RECIPE, epochs=0.5)).steps == 2


def test_checkpoints_come_between_validations(start, monkeypatch):
    steps = []
    monkeypatch.setattr(run_module, "_CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(run_module, "_CHECKPOINT_SHARE", 1.0)
    monkeypatch.setattr(
        trainer_module, "write_checkpoint", lambda folder, checkpoint: steps.append(checkpoint["global_step"])
    )
    start(epochs=10)
    assert set(steps) > set(range(4, 41, 4))


def test_model_without_blocks_trains_too(start):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    assert start(model=plain, objective=Classification()).steps == 12
