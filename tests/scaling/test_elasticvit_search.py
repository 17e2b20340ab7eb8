"""The search inside ElasticViT's super-network: in the space and the band always; and what training leaves to find."""

import random

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from anyvit.errors import BudgetError
from anyvit.models.elasticvit_macs import macs
from anyvit.models.elasticvit_space import MINIMUMS, PUBLISHED, Space, Stage
from anyvit.models.elasticvit_super import ElasticSuperViT
from anyvit.scaling.design.elasticvit import BankBand, CalibratedAccuracy, ElasticGenes
from anyvit.scaling.design.supernet import Band, Plan, evolve
from anyvit.training.batch_norm import recalibrate
from anyvit.training.objectives.banks import PUBLISHED_BANKS

TOY = Space(
    resolutions=(32,),
    stages=(
        Stage("conv", 1, False, (16, 24), (1, 2), (1,), (3, 5)),
        Stage("conv", 2, False, (16, 24), (1, 2), (3, 4), (3, 5)),
        Stage("conv", 2, True, (16, 24), (1,), (3, 4), (3, 5)),
        Stage("attention", 2, True, (16, 24), (1, 2), (2, 3), (2, 3, 4)),
        Stage("attention", 1, True, (24,), (1,), (2, 3), (2, 3, 4)),
    ),
    head_dim=8,
    head_multiplier=2,
    head_width=20,
)
PLAN = Plan(population=12, generations=4, parents=6, mutants=6, children=6)


def width(arch):
    return sum(arch.channels)


def test_draws_are_steered_into_a_narrow_band():
    genes, space = ElasticGenes(PUBLISHED.above(MINIMUMS[800])), PUBLISHED.above(MINIMUMS[800])
    band = BankBand.of(PUBLISHED_BANKS, 500e6)  # which one in a thousand uniform draws is in
    drawn = [genes.draw(band) for _ in range(30)]
    assert all(space.checked(arch) == arch for arch in drawn)
    assert sum(map(band.holds, drawn)) > 15


def test_mutants_and_children_stay_in_the_space():
    genes, chance = ElasticGenes(PUBLISHED, seed=1), random.Random(0)
    parents = [PUBLISHED.draw(chance) for _ in range(20)]
    for mother, father in zip(parents, parents[1:] + parents[:1], strict=True):
        mutant, child = genes.mutate(mother), genes.cross(mother, father)
        assert PUBLISHED.checked(mutant) != mother
        assert PUBLISHED.checked(child).channels in (mother.channels, father.channels)
        assert child.depths in (mother.depths, father.depths)
        assert child.res in (mother.res, father.res)
        ratios = [PUBLISHED.outline(arch).ratios for arch in (child, mother, father)]
        assert ratios[0][:3] in (ratios[1][:3], ratios[2][:3])
        assert ratios[0][3:] in (ratios[1][3:], ratios[2][3:])


def test_the_search_keeps_the_published_bands():
    for target in (100, 200, 400, 700, 1200):
        genes = ElasticGenes(PUBLISHED.above(PUBLISHED_BANKS.least(1e6 * target)), seed=target)
        band = BankBand.of(PUBLISHED_BANKS, 1e6 * target)
        found = evolve(genes, band, width, PLAN)
        assert all(1e6 * target <= macs(arch, strict_reference=True) <= 1e6 * (target + 20) for arch in found.scores)
        assert not any(arch.res == 160 and target >= 380 for arch in found.scores)
        assert found.best_by_generation == sorted(found.best_by_generation)
        assert len(found.scores) > PLAN.population


def test_any_cost_bounds_it_and_what_is_out_of_reach_ends():
    rows = Band(lambda arch: sum(arch.depths) * arch.res / 100, 20.0, 25.0, "ms")
    found = evolve(ElasticGenes(PUBLISHED), rows, width, PLAN)
    assert all(20 <= sum(arch.depths) * arch.res / 100 <= 25 for arch in found.scores)
    with pytest.raises(BudgetError, match="the nearest has"):
        evolve(ElasticGenes(PUBLISHED), Band(macs, 1.0, 2.0), width, Plan(population=2, attempts=5))


def test_a_subnetwork_is_judged_with_statistics_of_its_own():
    torch.manual_seed(0)
    model = ElasticSuperViT(space=TOY, num_classes=3).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calibration = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    images = torch.randn(6, 3, 32, 32)
    plain = model.extract(TOY.smallest)
    recalibrate(plain, calibration)
    labels = plain(images).argmax(1)
    labels[0] = (labels[0] + 1) % 3
    judge = CalibratedAccuracy(model, calibration, [(images[:4], labels[:4]), (images[4:], labels[4:])])
    assert judge(TOY.smallest) == pytest.approx(5 / 6)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.slow
def test_largest_and_smallest_learn_the_digits():
    digits = load_digits()
    small = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 8 - 1
    images, labels = F.interpolate(small, 32, mode="bilinear"), torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    train, test = order[:1400], order[1400:]
    model = ElasticSuperViT(space=TOY, num_classes=10).train()
    epochs, batch = 6, 50
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(train) // batch)
    for _ in range(epochs):
        for chosen in train[torch.randperm(len(train))].split(batch):
            optimizer.zero_grad()
            for arch in (TOY.largest, TOY.smallest):
                model.set_arch(arch)
                F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    judge = CalibratedAccuracy(model, images[train].split(200), [(images[test], labels[test])])
    right = {name: judge(arch) for name, arch in (("largest", TOY.largest), ("smallest", TOY.smallest))}
    assert min(right.values()) >= 0.95, right
