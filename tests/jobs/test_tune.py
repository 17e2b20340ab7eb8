"""A candidate trained further: in its own shape, without touching the model, and the same from the same seed."""

import dataclasses
import os
import signal

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from anyvit.backends.precision import on_threads
from anyvit.data import open_data
from anyvit.data.preprocessing import Preprocessing
from anyvit.errors import Interrupted
from anyvit.jobs.tune import tune, tuning_recipe
from anyvit.models import create_model
from anyvit.models.hydravit import HydraViT
from anyvit.models.layers.channel_idle import TokenBatchNorm
from anyvit.models.layers.evit import evit
from anyvit.scaling.candidate import Candidate, Step
from anyvit.scaling.scoring import scores_of
from anyvit.scaling.shrink import lever_named
from anyvit.scaling.workshop import Workshop, reshape
from anyvit.training.objectives import Classification
from anyvit.training.recipes import RECIPES
from anyvit.training.trainer import train
from tests.training.conftest import tinted_data

PREPROCESSING = Preprocessing(8)
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EVIT = Step("tokens", {"method": "evit", "keep_rate": 0.5})


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small lose time to threads."""
    with on_threads(1):
        yield


def elastic():
    torch.manual_seed(0)
    return HydraViT(
        img_size=8, patch_size=2, embed_dim=12, depth=2, num_heads=3, num_classes=4, elastic_heads=(1, 2, 3)
    ).eval()


def registered(name, lever=None):
    torch.manual_seed(0)
    model = create_model(name, num_classes=4)
    return (lever_named(lever).before_training(model, {}) if lever else model).eval()


def idle():
    return lever_named("reparameterize").before_training(elastic(), {}).eval()


CASES = {
    "heads": (elastic, [Step("heads", {"heads": 2})]),
    "heads, nothing merged": (elastic, [Step("heads", {"heads": 2}), Step("reparameterize", {})]),
    "units": (elastic, [Step("prune", {"units": 0.35})]),
    "heads, zeros": (elastic, [Step("heads", {"heads": 2}), Step("prune", {"zeros_not_faster": 0.5})]),
    "evit": (elastic, [EVIT]),
    "tome": (elastic, [Step("tokens", {"method": "tome", "r": 3})]),
    "groups": (lambda: registered("hsvit_c2a2_8"), [Step("groups", {"groups": 1})]),
    "merged": (lambda: registered("repavit_tiny_patch2_8"), [Step("reparameterize", {"idle": 0.75})]),
    "merged, evit": (idle, [Step("reparameterize", {"idle": 0.5}), EVIT]),
    "scales": (lambda: registered("hydravit_tiny_patch2_8", "scales"), [Step("scales", {"scales": 1})]),
}


def tuned(model, candidate, folder, **changes):
    arguments = {"seconds": None, "epochs": 1, "folder": folder, **changes}
    return tune(model, candidate, tinted_data(), PREPROCESSING, **arguments)


@pytest.mark.filterwarnings("error:a merged MLP")  # it is not what trains
@pytest.mark.parametrize(("make", "levers"), CASES.values(), ids=CASES)
def test_every_shape_is_tuned_and_the_model_stays(make, levers, tmp_path):
    model, candidate = make(), Candidate(tuple(levers), Step("torch"), tuned=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = tuned(model, candidate, tmp_path)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not model.training
    shape = reshape(model, candidate).eval()
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in shape.state_dict().items()
    }
    workshop = Workshop(model, IMAGES, tuned={candidate.id: weights})
    answer = workshop.runner(candidate)(IMAGES)
    assert answer.isfinite().all()
    assert not torch.equal(answer, shape(IMAGES).softmax(1))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_zeros_stay_zeros(tmp_path):
    model = elastic()
    candidate = Candidate((Step("prune", {"zeros_not_faster": 0.5}),), Step("torch"))
    weights, start = tuned(model, candidate, tmp_path), reshape(model, candidate).state_dict()
    zeros = {name for name, tensor in start.items() if tensor.ndim == 2 and (tensor == 0).any()}
    assert zeros
    assert all(torch.equal(weights[name] == 0, start[name] == 0) for name in zeros)
    assert not any(torch.equal(weights[name], start[name]) for name in zeros)


def test_what_merges_answers_as_what_was_trained(tmp_path, monkeypatch):
    """The merged weights are those of the trainable form, with the statistics of its own averaged weights."""
    model, candidate = idle(), Candidate(tuple(CASES["merged, evit"][1]), Step("torch"))
    trained = []
    monkeypatch.setattr(
        "anyvit.jobs.tune.train", lambda *args, **kwargs: trained.append(train(*args, **kwargs)) or trained[0]
    )
    weights = tuned(model, candidate, tmp_path)
    shape = reshape(model, candidate)
    shape.load_state_dict(weights, assign=True)
    unmerged = trained[0].model
    assert type(unmerged) is type(evit(model))
    torch.testing.assert_close(shape.eval()(IMAGES), unmerged(IMAGES), rtol=1e-5, atol=1e-5)
    norms = [module for module in unmerged.modules() if isinstance(module, TokenBatchNorm)]
    assert all(int(norm.num_batches_tracked) == 16 for norm in norms)


def test_weights_follow_from_the_seed_and_an_interrupted_tuning_is_resumed(tmp_path):
    model, candidate = elastic(), Candidate((Step("heads", {"heads": 2}),), Step("torch"))
    events = []
    whole = tuned(model, candidate, tmp_path / "whole", epochs=3, progress=events.append)
    assert {(event.stage, event.message) for event in events} == {("tune", candidate.id)}
    assert events[-1].done == 1

    def press(event):
        if event.done:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyvit.training.run._EVENT_EVERY_S", 0.0)
        with pytest.raises(Interrupted, match="stopped after 1 steps"):
            tuned(model, candidate, tmp_path / "parts", epochs=3, progress=press)
    parts = tuned(model, candidate, tmp_path / "parts", epochs=3)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    other = tuned(model, candidate, tmp_path / "other", epochs=3, seed=1)
    assert not torch.equal(other["head.weight"], whole["head.weight"])


def test_where_there_is_no_time_for_an_epoch_steps_count(tmp_path):
    model, candidate = elastic(), Candidate((EVIT,), Step("torch"))
    weights = tuned(model, candidate, tmp_path, epochs=None, seconds=1e-3)
    assert not torch.equal(weights["head.weight"], model.head.weight)


def test_the_recipe_is_gentle_and_crops_photographs_alone():
    for size, name in ((8, "scratch-tiny"), (32, "scratch-small"), (224, "fine-tune")):
        recipe = tuning_recipe(size)
        assert recipe.lr == RECIPES[name].lr / 4
        assert (recipe.crop_scale is None) == (size < 97)
        assert (recipe.weight_decay, recipe.drop_path, recipe.layer_decay) == (0, 0, 1)


@pytest.mark.slow
def test_a_pruned_model_gains_what_it_lost(tmp_path):
    digits = open_data("digits")
    torch.manual_seed(0)
    start = VisionTransformer(img_size=8, patch_size=4, embed_dim=32, depth=3, num_heads=4, num_classes=10)
    hasty = dataclasses.replace(RECIPES["scratch-tiny"], mixing=0, lr=5e-3)
    run = {"recipe": hasty, "preprocessing": PREPROCESSING, "folder": tmp_path / "run"}
    model = train(start, digits, objective=Classification(), epochs=8, **run).model
    candidate = Candidate((Step("prune", {"units": 0.55}),), Step("torch"))
    weights = tune(model, candidate, digits, PREPROCESSING, seconds=None, epochs=2, folder=tmp_path)

    def accuracy(shape):
        runner = Workshop(shape, IMAGES).runner(Candidate((), Step("torch")))
        return scores_of(runner, digits.splits["test"], PREPROCESSING, digits.classes).accuracy

    shape = reshape(model, candidate)
    before = accuracy(shape)
    shape.load_state_dict(weights)
    full, after = accuracy(model), accuracy(shape)
    assert full > after > before + 0.1, (full, before, after)
