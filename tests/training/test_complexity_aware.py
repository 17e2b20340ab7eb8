"""ElasticViT's training: the walk over banks, what they remember, the step, and that a resumed run is the same."""

import copy
import dataclasses
import json
import random
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from anyvit.errors import BudgetError, Interrupted, ModelError, SettingError
from anyvit.models.elasticvit_space import MINIMUMS, PUBLISHED, Space, Stage
from anyvit.models.elasticvit_super import ElasticSuperViT
from anyvit.training.alpha_divergence import adaptive_divergence, sharpened
from anyvit.training.checkpoint import read_checkpoint
from anyvit.training.objectives.banks import PUBLISHED_BANKS, Banks, BankWalk, Memory, choose
from anyvit.training.objectives.complexity_aware import ComplexityAware
from anyvit.training.objectives.teacher import Teacher
from anyvit.training.recipes import RECIPES
from anyvit.training.trainer import train

SMALL = Space(
    resolutions=(16, 24),
    stages=(
        Stage("conv", 1, False, (8,), (1,), (1,), (3, 5)),
        Stage("conv", 2, True, (8, 16), (1, 2), (3, 4), (3, 5)),
        Stage("attention", 2, True, (16, 24), (1, 2), (2, 3), (2, 3)),
    ),
    head_dim=8,
    head_multiplier=2,
    head_width=20,
)
BANKS = Banks(SMALL, (0.1e6, 0.2e6, 0.3e6), 0.05e6, capacities=(4, 4, 4))
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.softmax(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), 1)


def supernet():
    torch.manual_seed(0)
    return ElasticSuperViT(space=SMALL, num_classes=4)


def test_the_walk_visits_all_banks_a_step_at_a_time():
    for seed in range(20):
        visited = [BankWalk(8, seed).after(moves) for moves in (500, 499)]
        walk = BankWalk(8, seed)
        banks = [walk.after(moves) for moves in range(501)]
        assert visited == banks[:498:-1]
        assert {*banks} == set(range(8))
        assert max(abs(a - b) for a, b in pairwise(banks)) == 1
    assert BankWalk(1, 0).after(9) == 0


def test_least_networks_move_with_the_level():
    least = [PUBLISHED_BANKS.least(1e6 * target) for target in (100, 220, 221, 420, 421, 1200)]
    assert least == [MINIMUMS[up_to] for up_to in (200, 200, 400, 400, 800, 800)]
    assert BANKS.least(2e5) == SMALL.smallest
    arch = PUBLISHED_BANKS.draw(7, random.Random(0))
    assert 1200e6 <= PUBLISHED_BANKS.cost_of(arch) <= 1220e6
    assert min(arch.depths[2:]) >= 2


def test_a_full_memory_gives_up_its_worst_for_a_better_one():
    memory, drawn = Memory(3), [SMALL.draw(random.Random(seed)) for seed in range(6)]
    for arch, score in zip(drawn, (-3.0, -1.0, -2.0, -4.0, -2.5, -0.5), strict=True):
        memory.offer(arch, score)
        assert len(memory.scores) <= 3
    assert sorted(memory.scores.values()) == [-2.0, -1.0, -0.5]
    memory.offer(drawn[1], -9.0)  # known: it is only scored again
    assert memory.scores[drawn[1]] == -9.0
    assert memory.best() == drawn[5]
    other = Memory(3)
    other.restore(json.loads(json.dumps(memory.state())))
    assert other.scores == memory.scores
    picks = [memory.pick(random.Random(seed)) for seed in range(200)]
    assert picks.count(drawn[5]) > picks.count(drawn[2]) > picks.count(drawn[1])


def test_what_is_chosen_from_a_bank(caplog):
    memories, chance = [Memory(4) for _ in range(3)], random.Random(0)
    assert all(BANKS.holds(1, choose(BANKS, memories, 1, 0, chance)[0]) for _ in range(5))
    for _ in range(3):
        memories[1].offer(BANKS.draw(1, chance), 0.0)
    assert sum(not choose(BANKS, memories, 1, 600, random.Random(seed))[1] for seed in range(20)) == 20
    remembered = sum(not choose(BANKS, memories, 1, 0, random.Random(seed))[1] for seed in range(40))
    assert 0 < remembered < 20
    assert "the first bank is empty: subnetworks are compared with the smallest one" in caplog.text
    caplog.clear()
    memories[0].offer(BANKS.draw(0, chance), 0.0)
    assert BANKS.holds(1, choose(BANKS, memories, 1, 0, chance)[0])
    assert not caplog.text


def test_wide_and_shallow_is_preferred():
    anchor = BANKS.draw(0, random.Random(0))
    assert BANKS.preference(anchor, anchor) == 0
    outline = SMALL.outline(anchor)._replace(channels=(8, 8, 16), depths=(1, 1, 1))
    base = SMALL.expand(outline)
    wide = SMALL.expand(outline._replace(channels=(8, 8, 24)))
    deep = SMALL.expand(outline._replace(depths=(1, 1, 2)))
    assert BANKS.preference(wide, base) < 0 < BANKS.preference(deep, base)


def test_a_step_is_the_sum_of_three_of_a_bank_and_their_least_pupil():
    model, objective = supernet(), ComplexityAware(4, BANKS)
    seen = []

    class Watched(ElasticSuperViT):
        def set_arch(self, arch):
            seen.append(arch)
            super().set_arch(arch)

    twin = copy.deepcopy(model)
    twin.__class__ = Watched
    loss, figures = objective.loss(twin, IMAGES, TARGETS, step=2)
    assert len(seen) == 4
    assert {BANKS.holds(int(figures["bank"]), arch) for arch in seen[:3]} == {True}
    assert seen[3] == SMALL.smallest
    answers = [(model.set_arch(arch), model(IMAGES))[1] for arch in seen]
    taught = torch.stack([answer.detach().softmax(1) for answer in answers[:3]]).mean(0)
    expected = sum(F.cross_entropy(answer, TARGETS) for answer in answers[:3]) + adaptive_divergence(answers[3], taught)
    torch.testing.assert_close(loss, expected)
    again = ComplexityAware(4, BANKS).loss(model, IMAGES, TARGETS, step=2)[0]
    torch.testing.assert_close(again, loss)
    loss.backward()


@pytest.mark.parametrize("count", [1, 2])
def test_teachers_are_learned_from(count):
    model, teachers = supernet(), [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)) for _ in range(2)]
    objective = ComplexityAware(4, BANKS, tuple(map(Teacher, teachers[:count])))
    plain, _ = ComplexityAware(4, BANKS).loss(model, IMAGES, TARGETS, step=0)
    loss, _ = objective.loss(model, IMAGES, TARGETS, step=0)
    answers = [teacher(IMAGES) for teacher in teachers[:count]]
    goal = sharpened(answers) if count == 2 else 0.5 * TARGETS + 0.5 * answers[0].softmax(1)
    expected, _ = ComplexityAware(4, BANKS).loss(model, IMAGES, goal.detach(), step=0)
    torch.testing.assert_close(loss, expected)
    assert not torch.allclose(loss, plain)


def test_scores_are_renewed_and_stay_inside():
    model, objective = supernet(), ComplexityAware(8, BANKS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(24):
        loss, _ = objective.loss(model, IMAGES, TARGETS, step=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    banks = objective.state_dict()["memories"]
    assert sum(map(len, banks)) > 4
    for bank, entries in enumerate(banks):
        assert len(entries) <= 4
        assert all(BANKS.holds(bank, SMALL.checked(arch)) for arch, _ in entries)
    objective.loss(model, IMAGES, TARGETS, step=24)  # the first of an epoch
    renewed = objective.state_dict()["memories"]
    kept = [(a[1], b[1]) for old, new in zip(banks, renewed, strict=True) for a in old for b in new if a[0] == b[0]]
    assert kept
    assert all(a != b for a, b in kept)
    objective.loss(model, IMAGES, TARGETS, step=0)
    assert sum(map(len, objective.state_dict()["memories"])) <= 3


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_uninterrupted_one(data, preprocessing, tmp_path):
    recipe = dataclasses.replace(RECIPES["scratch-tiny"], batch_size=24)

    class Stopping(ComplexityAware):
        def loss(self, model, images, targets, *, step):
            if step == 7:
                raise Interrupted("stop")
            return super().loss(model, images, targets, step=step)

        def __repr__(self):
            return super().__repr__().replace(type(self).__qualname__, ComplexityAware.__qualname__)

    def run(kind, folder):
        return train(
            supernet(), data, objective=kind(3, BANKS), recipe=recipe, preprocessing=preprocessing, folder=folder,
            epochs=4, workers=0, validate=lambda model, step: {},
        )  # fmt: skip

    whole = run(ComplexityAware, tmp_path / "whole")
    with pytest.raises(Interrupted, match="stopped after"):
        run(Stopping, tmp_path / "parts")
    held = read_checkpoint(tmp_path / "parts")["objective"]["memories"]
    assert sum(map(len, held)) > 2
    parts = run(ComplexityAware, tmp_path / "parts")
    assert parts.steps == whole.steps == 12
    torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ModelError, match="a HydraViT has no subnetworks to draw: train an ElasticViT super-network"):
        ComplexityAware(4, BANKS).loss(model, IMAGES, TARGETS, step=0)
    with pytest.raises(ModelError, match="the banks are of another space"):
        ComplexityAware(4, Banks(PUBLISHED, (1e8,), 1e7)).loss(supernet(), IMAGES, TARGETS, step=0)
    with pytest.raises(SettingError, match="an epoch has at least one step: got 0"):
        ComplexityAware(0, BANKS)
    with pytest.raises(SettingError, match="targets of banks must rise"):
        Banks(SMALL, (2.0, 1.0), 1.0)
    with pytest.raises(SettingError, match=r"each of 1 banks has a capacity: got \[1, 2\]"):
        Banks(SMALL, (1.0,), 1.0, (1, 2))


def test_a_bank_out_of_reach_ends_with_what_is_nearest(monkeypatch):
    monkeypatch.setattr("anyvit.training.objectives.banks.ATTEMPTS", 50)
    with pytest.raises(BudgetError, match="none of 50 subnetworks has 1e\\+09 to 1.001e\\+09 MACs: the nearest has"):
        Banks(SMALL, (1e9,), 1e6).draw(0, random.Random(0))
