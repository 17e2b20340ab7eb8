"""Coarse tokens first: the schedule, that nothing else changes, and that a training with it resumes."""

import dataclasses

import pytest
import torch
from torch import nn

from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import Interrupted, ModelError, SettingError
from anyvit.models.asvit import AsViT
from anyvit.training.objectives import Classification, ProgressiveTokens
from anyvit.training.recipes import RECIPES
from anyvit.training.trainer import train

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TARGETS = torch.softmax(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), 1)
SCHEDULE = ((0, 4), (2, 2), (3, 1))


def asvit():
    torch.manual_seed(0)
    return AsViT(topology="4,2,2|2,1,2|2,1,2|2,1,2|16,16", img_size=32, num_classes=4).train()


class Watching(Classification):
    def loss(self, model, images, targets, *, step):
        self.seen.append(model.embed(images).shape[1])
        return super().loss(model, images, targets, step=step)

    seen: list[int] = []  # noqa: RUF012


def test_each_phase_has_its_tokens():
    Watching.seen.clear()
    model, objective = asvit(), ProgressiveTokens(Watching(), steps_per_epoch=2, schedule=SCHEDULE)
    losses = [objective.loss(model, IMAGES, TARGETS, step=step)[0] for step in range(8)]
    assert Watching.seen == [2, 2, 2, 2, 4, 4, 8, 8]
    assert torch.stack(losses).isfinite().all()
    assert torch.equal(losses[-1], Classification().loss(model, IMAGES, TARGETS, step=7)[0])


def test_a_change_of_tokens_keeps_weights_and_optimizer():
    model, objective = asvit(), ProgressiveTokens(Classification(), 1, SCHEDULE)
    optimizer = torch.optim.AdamW(model.parameters())
    moments = []
    for step in range(4):
        optimizer.zero_grad()
        objective.loss(model, IMAGES, TARGETS, step=step)[0].backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        moments.append({id(p): optimizer.state[p]["exp_avg"].data_ptr() for p in model.parameters()})
        assert model.token_factor == 1
    assert all(each == moments[0] for each in moments)


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_uninterrupted_one(data, tmp_path):
    class Stopping(Classification):
        def loss(self, model, images, targets, *, step):
            if step == 6:
                raise Interrupted("stop")
            return super().loss(model, images, targets, step=step)

        def __repr__(self):
            return repr(Classification())

    recipe = dataclasses.replace(RECIPES["scratch-tiny"], batch_size=16)

    def run(objective, folder):
        coarse = ProgressiveTokens(objective, steps_per_epoch=4, schedule=((0, 4), (1, 2), (2, 1)))
        return train(
            asvit(), data, objective=coarse, recipe=recipe, preprocessing=Preprocessing(32), folder=folder,
            epochs=3, workers=0, validate=lambda model, step: {"factor": model.token_factor},
        )  # fmt: skip

    whole = run(Classification(), tmp_path / "whole")
    with pytest.raises(Interrupted, match="stopped after"):
        run(Stopping(), tmp_path / "parts")
    parts = run(Classification(), tmp_path / "parts")
    assert parts.steps == whole.steps == 12
    assert {entry["factor"] for entry in whole.history} == {1}
    torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("schedule", [(), ((1, 2), (2, 1)), ((0, 3), (2, 1)), ((0, 2), (0, 1)), ((0, 2),)])
def test_wrong_schedules_are_refused(schedule):
    with pytest.raises(SettingError, match="a schedule of tokens has rising first epochs from 0 on"):
        ProgressiveTokens(Classification(), 10, schedule)


def test_other_models_are_refused():
    with pytest.raises(ModelError, match="only an As-ViT's tokens can be coarser: this is a Linear"):
        ProgressiveTokens(Classification(), 1, ((0, 1),)).loss(nn.Linear(2, 2), IMAGES, TARGETS, step=0)
