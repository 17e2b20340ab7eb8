import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anyvit.errors import ModelError, SettingError
from anyvit.models.layers.evit import evit
from anyvit.training.objectives import (
    OBJECTIVES,
    Distillation,
    KeepRateWarmUp,
    MultiArchitecture,
    ProgressiveTokens,
    TokenMixup,
)
from anyvit.training.objectives.classification import Classification, accuracy
from anyvit.training.objectives.complexity_aware import ComplexityAware
from anyvit.training.objectives.elastic import ElasticClassification
from anyvit.training.objectives.sampler import HeadSampler
from tests.training import test_multi_architecture, test_progressive_tokens
from tests.training.test_complexity_aware import BANKS, supernet

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.softmax(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), 1)


MADE = {
    ComplexityAware: lambda model: (ComplexityAware(4, BANKS), supernet()),
    Distillation: lambda model: (Distillation(model), model.extract(2)),
    KeepRateWarmUp: lambda model: (KeepRateWarmUp(Classification(), 4, 0, 2), evit(model.extract(3), 0.5)),
    MultiArchitecture: lambda model: (MultiArchitecture(2), test_multi_architecture.supernet().train()),
    ProgressiveTokens: lambda model: (
        ProgressiveTokens(Classification(), 2, test_progressive_tokens.SCHEDULE),
        test_progressive_tokens.asvit(),
    ),
    TokenMixup: lambda model: (TokenMixup(), test_multi_architecture.supernet(patch_output="seq").train()),
}
"""Objectives that need more than an elastic model: how one is made, and what it trains."""


@pytest.mark.parametrize("kind", OBJECTIVES.values(), ids=OBJECTIVES)
def test_objective_gives_a_loss_that_reaches_the_weights(kind, model):
    make = MADE.get(kind, lambda model: (kind(), model))
    objective, learner = make(model)
    images = F.interpolate(IMAGES, size=getattr(learner, "img_size", 8))
    torch.manual_seed(3)
    first, figures = objective.loss(learner, images, TARGETS, step=3)
    first.backward()
    assert first.isfinite()
    assert 0 <= figures["accuracy"] <= 1
    assert any(parameter.grad.any() for parameter in learner.parameters())
    again, _ = make(model)
    torch.manual_seed(3)
    assert torch.equal(again.loss(learner, images, TARGETS, step=3)[0], first)
    assert repr(again) == repr(objective)
    assert " at 0x" not in repr(objective)


def test_labels_and_soft_targets_agree(model):
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    hard, _ = Classification().loss(model, IMAGES, labels, step=0)
    soft, _ = Classification().loss(model, IMAGES, F.one_hot(labels, 4).float(), step=0)
    torch.testing.assert_close(hard, soft)
    assert accuracy(F.one_hot(labels, 4), labels) == 1


@pytest.mark.parametrize(
    ("choice", "weights", "drawn"),
    [("uniform", None, None), ("weighted", (30, 30, 40), (30, 30, 40)), ("weighted", None, (1, 2, 3))],
)
def test_one_subnetwork_a_step(choice, weights, drawn, model):
    objective, sampler = ElasticClassification(choice, weights, seed=5), HeadSampler((1, 2, 3), drawn, 5)
    for step in (0, 7, 2):
        loss, _ = objective.loss(model, IMAGES, TARGETS, step=step)
        assert torch.equal(loss, F.cross_entropy(model(IMAGES, heads=sampler.draw(step)), TARGETS))


def test_sandwich_teaches_in_place(model):
    answer = model(IMAGES).softmax(1).detach()
    expected = F.cross_entropy(model(IMAGES), TARGETS)
    for heads in (1, 2):
        expected = expected + F.cross_entropy(model(IMAGES, heads=heads), answer)
    loss, _ = ElasticClassification("sandwich").loss(model, IMAGES, TARGETS, step=0)
    torch.testing.assert_close(loss, expected)
    one = type(model)(img_size=8, embed_dim=12, num_heads=3, depth=1, patch_size=4, num_classes=4, elastic_heads=(3,))
    loss, _ = ElasticClassification("sandwich").loss(one, IMAGES, TARGETS, step=0)
    torch.testing.assert_close(loss, F.cross_entropy(one(IMAGES), TARGETS))


def test_processes_draw_apart_unless_told(model, monkeypatch):
    def heads(rank, **options):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        return [ElasticClassification("uniform", **options)._draw((1, 2, 3), step) for step in range(20)]

    assert heads(1) == [HeadSampler((1, 2, 3), None, 1).draw(step) for step in range(20)]
    assert heads(0) != heads(1)
    assert heads(0, sync_across_ranks=True) == heads(1, sync_across_ranks=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"choice": "sandwhich"}, r"unknown choice of subnetworks 'sandwhich'. Did you mean 'sandwich'\?"),
        ({"choice": "uniform", "weights": (1, 2)}, "weights go with choice 'weighted' alone"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(SettingError, match=words):
        ElasticClassification(**options)


def test_plain_model_is_refused():
    with pytest.raises(ModelError, match="needs an elastic model, not Linear"):
        ElasticClassification().loss(nn.Linear(2, 2), IMAGES, TARGETS, step=0)
