"""Keep rates that fall while a model trains: the schedule of the paper, block by block, and that it is resumed."""

import dataclasses
import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from anyvit.errors import Interrupted, ModelError, SettingError
from anyvit.models.layers.evit import evit
from anyvit.models.layers.tome import tome
from anyvit.training.objectives import Classification, KeepRateWarmUp
from anyvit.training.recipes import RECIPES
from anyvit.training.trainer import train

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.softmax(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), 1)
RECIPE = dataclasses.replace(RECIPES["scratch-tiny"], batch_size=16)
STEPS = 4  # an epoch of the 72 images


def plain():
    torch.manual_seed(0)
    return VisionTransformer(img_size=8, patch_size=2, embed_dim=24, depth=3, num_heads=2, num_classes=4)


def by_formula(step, base, start, end):
    """Of the specification, with I steps an epoch: b + (1 - b) / 2 * (1 + cos(pi * (it - e0 * I) / (I * (e1 - e0))))"""
    if step // STEPS < start:
        return 1.0
    if step // STEPS >= end:
        return base
    return base + (1 - base) * 0.5 * (1 + math.cos(math.pi * (step - start * STEPS) / (STEPS * (end - start))))


def test_each_block_falls_from_one_to_its_own_rate():
    model, seen = evit(plain(), [1, 0.7, 0.5]), []

    class Watching(Classification):
        def loss(self, model, images, targets, *, step):
            seen.append(model.keywords["keep_rate"])
            return super().loss(model, images, targets, step=step)

    objective = KeepRateWarmUp(Watching(), steps_per_epoch=STEPS, start=1, end=3)
    for step in range(16):
        objective.loss(model, IMAGES, TARGETS, step=step)
    expected = [[1.0, by_formula(step, 0.7, 1, 3), by_formula(step, 0.5, 1, 3)] for step in range(16)]
    assert seen == [pytest.approx(rates, abs=1e-12) for rates in expected]
    assert seen[:5] == [[1, 1, 1]] * 5
    assert seen[8] == pytest.approx([1, 0.85, 0.75])
    assert seen[12:] == [[1, 0.7, 0.5]] * 4


def test_before_it_nothing_is_reduced_and_after_it_as_the_model_says():
    model = plain()
    objective, reduced = KeepRateWarmUp(Classification(), STEPS, 1, 2), evit(model, 0.5)
    losses = [objective.loss(reduced, IMAGES, TARGETS, step=step)[0] for step in (0, 8)]
    expected = [Classification().loss(whole, IMAGES, TARGETS, step=0)[0] for whole in (model, reduced)]
    torch.testing.assert_close(losses[0], expected[0])
    assert torch.equal(losses[1], expected[1])


def test_a_resumed_run_ends_as_an_uninterrupted_one(data, preprocessing, tmp_path):
    class Stopping(Classification):
        def loss(self, model, images, targets, *, step):
            if step == 6:
                raise Interrupted("stop")
            return super().loss(model, images, targets, step=step)

        def __repr__(self):
            return repr(Classification())

    def run(objective, folder):
        warm = KeepRateWarmUp(objective, STEPS, 1, 2)
        return train(
            evit(plain(), 0.5), data, objective=warm, recipe=RECIPE, preprocessing=preprocessing, folder=folder,
            epochs=3, workers=0, validate=lambda model, step: {},
        )  # fmt: skip

    whole = run(Classification(), tmp_path / "whole")
    with pytest.raises(Interrupted, match="stopped after"):
        run(Stopping(), tmp_path / "parts")
    parts = run(Classification(), tmp_path / "parts")
    assert parts.steps == whole.steps == 3 * STEPS
    torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_a_model_without_keep_rates_is_refused():
    objective = KeepRateWarmUp(Classification(), STEPS)
    for model in (plain(), tome(plain(), 2)):
        with pytest.raises(ModelError, match=rf"^keep rates are EViT's, and this {type(model).__name__} has none"):
            objective.loss(model, IMAGES, TARGETS, step=0)


@pytest.mark.parametrize(("steps", "start", "end"), [(0, 1, 2), (4, 3, 2), (4, -1, 2)])
def test_a_schedule_that_cannot_be_is_refused(steps, start, end):
    with pytest.raises(SettingError, match=rf"got {start}, {end} and {steps} steps"):
        KeepRateWarmUp(Classification(), steps, start, end)
