"""Growth: candidates, the choice among them, and where it ends."""

import json
import math

import pytest
import torch

from anyvit.costs.counts import count_params
from anyvit.errors import BudgetError
from anyvit.models.asvit import AsViT
from anyvit.models.asvit_topology import Topology
from anyvit.scaling.design.growth import Family, choose, grow, larger
from anyvit.scaling.design.supernet import Band
from anyvit.scaling.design.training_free import Measurement

SEED = Topology.parse("8,2,3|4,1,2|4,1,4|4,1,6|32")


def params(topology):
    with torch.device("meta"):
        return count_params(AsViT(topology=topology))


def area(topology):
    """A cost that is quick to tell and grows with everything."""
    return float(sum(topology.depths) * topology.hidden**2)


def toy(topology):
    return Measurement(float(topology.hidden * topology.depths[2]), 100.0 / topology.hidden)


def test_a_step_adds_a_block_and_may_widen():
    probes = larger(SEED.sized((1, 2, 1, 1), 8))
    assert [probe.hidden for probe in probes] == [8, 9, 10] * 4  # 9.2 rounds to 9 again
    assert [probe.depths for probe in probes[::3]] == [(2, 2, 1, 1), (1, 3, 1, 1), (1, 2, 2, 1), (1, 2, 1, 2)]


def of(*pairs):
    return [Measurement(length, condition) for length, condition in pairs]


def test_the_smallest_sum_of_dense_ranks_is_chosen():
    assert choose(of((1, 5), (3, 1), (2, 3))) == 1
    assert choose(of((1, 1), (1, 1), (2, 2), (2, 0.5))) == 3
    assert choose(of((3, 2), (2, 2), (1, 2))) == 0  # an equal condition is an equal rank
    assert choose([Measurement(1.0), Measurement(2.0)]) == 1
    assert choose(of((1, 5), (0.0, math.inf))) == 0
    assert choose(of((1, math.inf), (2, math.inf))) == 1


def test_a_tie_goes_to_the_measurement_that_differs_more():
    by_length, by_condition = of((9, 1.1), (1, 1.0)), of((1.1, 9), (1.0, 1))
    assert choose(by_length) == 0
    assert choose(by_length, strict_reference=True) == 1  # the shorter one, as the reference does
    assert choose(by_condition) == choose(by_condition, strict_reference=True) == 1


@pytest.mark.slow
def test_the_seed_grows_into_the_published_range():
    family = grow(SEED, toy, Band(params, 80e6, 110e6, "parameters"), ratios=(0.05, 0.2))
    costs = [member.cost for member in family.members]
    assert costs == sorted(set(costs))
    assert family.members[0].topology.to_string() == "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32"
    assert 80e6 <= costs[-1] <= 110e6
    assert costs[-2] < 80e6


def test_it_ends_at_any_limit():
    band = Band(area, 1e6, 1e6, "units")  # a point that no step will hit
    family = grow(SEED, toy, band)
    assert family.members[-1].cost < 1e6 < 1.5 * family.members[-1].cost
    assert len(grow(SEED, toy, Band(area, 4096.0, 5000.0)).members) == 1
    assert len(grow(SEED, toy, Band(lambda topology: 1.0, 2.0, 3.0), steps=4).members) == 5  # a cost that never grows
    with pytest.raises(
        BudgetError, match="the smallest network to grow has 4096 units, and at most 4000 are asked for"
    ):
        grow(SEED, toy, Band(area, 3000.0, 4000.0, "units"))


def test_an_interrupted_growth_goes_on():
    band, kept = Band(area, 5e4, 1e5), []
    whole = grow(SEED, toy, band, kept=lambda family: kept.append(json.dumps(family.to_json(), allow_nan=False)))
    assert len(kept) == len(whole.members) > 3
    measured = []
    known = Family.from_json(json.loads(kept[-2]))
    assert grow(SEED, lambda probe: measured.append(probe) or toy(probe), band, known=known) == whole
    assert len(measured) <= 16
    assert grow(SEED, toy, band, known=whole) == whole
