"""Several architectures in a batch: widths that grow, heads in order, and a run that resumes as if nothing was."""

import dataclasses

import pytest
import torch

from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import Interrupted, ModelError, SettingError
from anyvit.models.vit_resnas_layout import with_classes
from anyvit.models.vit_resnas_space import stages
from anyvit.models.vit_resnas_super import ViTResNASSuper
from anyvit.training.objectives import Classification, MultiArchitecture, TokenMixup
from anyvit.training.recipes import RECIPES
from anyvit.training.trainer import train

NETWORK = with_classes(stages((16, 8, [(3, 24)] * 2), (24, 8, [(3, 24)])), 4)
IMAGES = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(0))
TARGETS = torch.softmax(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), 1)
RECIPE = dataclasses.replace(RECIPES["scratch-tiny"], batch_size=18, ema_decay=0.0, mixing=0.0)
STEPS = 4  # an epoch of the 72 images


def supernet(**arguments):
    torch.manual_seed(0)
    return ViTResNASSuper(network_def=NETWORK, img_size=28, **arguments)


def test_widths_grow_and_heads_are_ordered_as_the_step_says(monkeypatch):
    model, events = supernet(), []
    monkeypatch.setattr(ViTResNASSuper, "rewire", lambda self: events.append("rewire"))
    objective = MultiArchitecture(steps_per_epoch=2, warmup_epochs=2)
    for step in range(8):
        objective.loss(model.train(), IMAGES, TARGETS, step=step)
        events.append(model.drops[1]["mlp"].usable)
    assert events == ["rewire", 1, 1, "rewire", 4, 4, "rewire", 7, 7, 7, 7]


def test_it_trains_the_patches_too():
    model = supernet(patch_output="seq").train()
    objective = MultiArchitecture(steps_per_epoch=1, objective=TokenMixup(), warmup_epochs=0)
    loss, figures = objective.loss(model, IMAGES, TARGETS, step=3)
    loss.backward()
    assert figures.keys() == {"accuracy", "patches"}
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_resumed_run_ends_as_an_uninterrupted_one(data, tmp_path):
    class Stopping(Classification):
        def loss(self, model, images, targets, *, step):
            if step == 6:
                raise Interrupted("stop")
            return super().loss(model, images, targets, step=step)

        def __repr__(self):
            return repr(Classification())

    def run(objective, folder):
        return train(
            supernet(examples_per_arch=2), data, objective=MultiArchitecture(STEPS, objective, warmup_epochs=2),
            recipe=RECIPE, preprocessing=Preprocessing(28), folder=folder, epochs=3, workers=0,
            validate=lambda model, step: {},
        )  # fmt: skip

    whole = run(Classification(), tmp_path / "whole")
    with pytest.raises(Interrupted, match="stopped after"):
        run(Stopping(), tmp_path / "parts")
    parts = run(Classification(), tmp_path / "parts")
    assert parts.steps == whole.steps == 3 * STEPS
    torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    smaller = (NETWORK[0], NETWORK[1], (*NETWORK[2][:3], 0), *NETWORK[3:])
    assert whole.model.extract(smaller)(IMAGES).shape == (8, 4)


def test_what_cannot_be_is_refused():
    with pytest.raises(ModelError, match=r"^several architectures at once need a super-network, and this is a Linear"):
        MultiArchitecture(1).loss(torch.nn.Linear(2, 2), IMAGES, TARGETS, step=0)
    with pytest.raises(SettingError, match="got 0 steps and 30 epochs"):
        MultiArchitecture(0)
    with pytest.raises(SettingError, match=r"^batch size 8 not divisible by examples per architecture 3"):
        MultiArchitecture(1).loss(supernet(examples_per_arch=3).train(), IMAGES, TARGETS, step=0)
