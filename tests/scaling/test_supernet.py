"""Constrained evolution: inside the band always, better or equal always, and always an end."""

from __future__ import annotations

import random

import pytest

from anyvit.errors import BudgetError, SettingError
from anyvit.protocols import silent
from anyvit.scaling.design.supernet import Band, Evolution, Plan, evolve, into_band

WIDTHS = range(1, 10)


class Widths:
    """Subnetworks of four layers, each of a width from 1 to 9; what it costs is the sum."""

    def __init__(self, seed=0):
        self.chance = random.Random(seed)

    def draw(self, band):
        return tuple(self.chance.choice(WIDTHS) for _ in range(4))

    def mutate(self, parent):
        return tuple(self.chance.choice(WIDTHS) if self.chance.random() < 0.3 else width for width in parent)

    def cross(self, mother, father):
        return tuple(map(self.chance.choice, zip(mother, father, strict=True)))


def first_counts_most(arch):
    return sum(width * weight for width, weight in zip(arch, (4, 2, 1, 0), strict=True))


BAND = Band(sum, 18, 20, "units")
PLAN = Plan(population=8, generations=12, parents=4, mutants=6, children=6)


def test_everything_scored_is_inside_and_the_best_never_falls():
    found = evolve(Widths(), BAND, first_counts_most, PLAN)
    assert all(BAND.holds(arch) for arch in found.scores)
    assert found.best_by_generation == sorted(found.best_by_generation)
    assert len(found.best_by_generation) == PLAN.generations + 1
    assert found.ranked()[0] == ((9, 9, 1, 1), 55)


def test_an_interrupted_search_goes_on_from_its_last_generation():
    kept = []

    def stop(evolution):
        kept.append(Evolution(dict(evolution.scores), list(evolution.best_by_generation)))
        if len(evolution.best_by_generation) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(Widths(), BAND, first_counts_most, PLAN, kept=stop)
    asked, before = [], set(kept[-1].scores)
    found = evolve(
        Widths(1), BAND, lambda arch: asked.append(arch) or first_counts_most(arch), PLAN, evolution=kept[-1]
    )
    assert len(found.best_by_generation) == PLAN.generations + 1
    assert not set(asked) & before


def test_it_ends_when_it_is_told_to():
    found = evolve(Widths(), BAND, first_counts_most, PLAN, stop=lambda: True)
    assert len(found.scores) == 1
    assert found.best_by_generation == []


def test_known_ones_come_first_if_they_fit():
    asked = []
    plan = Plan(population=2, generations=0)
    evolve(Widths(), BAND, lambda arch: asked.append(arch) or 0.0, plan, known=[(9, 9, 9, 9), (5, 5, 5, 5)])
    assert asked[0] == (5, 5, 5, 5)


def test_a_band_out_of_reach_ends_with_what_comes_nearest():
    with pytest.raises(BudgetError, match=r"none of 50 subnetworks has 40 to 50 units: the nearest has \d\d\."):
        evolve(Widths(), Band(sum, 40, 50, "units"), first_counts_most, Plan(attempts=50))
    with pytest.raises(BudgetError, match="Ask for about 36 units"):
        into_band(lambda: (9, 9, 9, 9), Band(sum, 40, 50, "units"), 3)


def test_a_band_of_one_subnetwork_ends():
    found = evolve(
        Widths(), Band(sum, 4, 4, "units"), first_counts_most, Plan(4, 2, 2, 2, 2, attempts=20000), progress=silent
    )
    assert list(found.scores) == [(1, 1, 1, 1)]


def test_refusals():
    with pytest.raises(SettingError, match="from 3 to 2 holds nothing"):
        Band(sum, 3, 2)
    with pytest.raises(SettingError, match=r"returned nan for \("):
        evolve(Widths(), BAND, lambda arch: float("nan"), PLAN)
