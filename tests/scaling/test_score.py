"""The training-free score of plain ViTs: what it is made of, and that it is remembered."""

from __future__ import annotations

import math

import pytest
import torch

from anyvit.costs.counts import Specification
from anyvit.models import create_model
from anyvit.models.shaped import SHAPED
from anyvit.scaling.design.probe import sample_crops
from anyvit.scaling.design.score import WEIGHTS, ShapeScore, effective_rank, keeping_variance, map_of

SMALL = Specification(16, 4, 2, 2, 16, 2.0, num_classes=3)
IMAGES = sample_crops(6, 16)


def test_a_score_is_the_weighted_sum_of_its_logarithms():
    score = ShapeScore(IMAGES)
    measured = score.measured(SMALL, 0)
    assert measured["condition"] > 1
    assert 1 <= measured["rank"] <= len(IMAGES)
    expected = sum(weight * math.log(measured[name]) for name, weight in WEIGHTS.items())
    assert score(SMALL, 1).value == pytest.approx(expected)
    assert score(SMALL, 1).standard_error == 0
    assert score(SMALL, 3).standard_error > 0


def test_what_was_measured_is_not_measured_again():
    kept = []
    score = ShapeScore(IMAGES, keep=lambda known: kept.append(list(known)))
    first = score(SMALL, 2)
    assert len(kept) == 2
    again = ShapeScore(IMAGES, known=kept[-1], keep=kept.append)
    assert again(SMALL, 2) == first
    assert len(kept) == 2


def test_the_same_seed_gives_the_same_score_and_leaves_the_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert ShapeScore(IMAGES)(SMALL, 1) == ShapeScore(IMAGES)(SMALL, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert ShapeScore(IMAGES, seed=1)(SMALL, 1) != ShapeScore(IMAGES)(SMALL, 1)


def test_layers_keep_the_variance_of_what_they_get():
    model = keeping_variance(create_model(SHAPED, image_size=16, patch_size=4, depth=2, heads=4, head_dim=32)).eval()
    images = torch.randn(64, 3, 16, 16)
    assert model.patch_embed(images).var().item() == pytest.approx(1, rel=0.1)
    assert model.blocks[0].mlp.fc1(torch.randn(64, 128)).var().item() == pytest.approx(1, rel=0.1)
    assert map_of(model)(images).shape == (64, 16 * 128)


def test_the_effective_rank_counts_directions():
    assert effective_rank(torch.eye(5, dtype=torch.float64)) == pytest.approx(4)  # centring takes one
    apart = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    assert effective_rank(torch.outer(apart, apart)) == pytest.approx(1)


def test_crops_are_normalized_photographs():
    crops = sample_crops(40, 24)
    assert crops.shape == (40, 3, 24, 24)
    assert abs(crops.mean().item()) < 0.7
    assert crops.flatten(1).std(dim=1).min() > 0.05
    assert torch.equal(sample_crops(40, 24), crops)
    assert not torch.equal(sample_crops(40, 24, seed=1), crops)
