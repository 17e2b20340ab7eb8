"""The search for a topology: it learns, follows from its seed, resumes, and survives networks that are broken."""

import json
import math

import pytest
import torch

from anyvit.errors import SettingError
from anyvit.models.asvit import AsViT
from anyvit.scaling.design.asvit import Policy, Search, Space, last_reward, search
from anyvit.scaling.design.training_free import Measurement, measure

SPACE = Space()


def toy(topology):
    """Wide MLPs promise most."""
    expansion = sum(stage.expansion for stage in topology.stages)
    return Measurement(float(expansion), 100.0 - expansion)


def test_the_space_is_the_published_one():
    assert len(SPACE) == 4_556_250
    assert SPACE.topology([4, 2, 2, 2, 0, 0, 0, 1, 0, 2, 4, 1]).to_string() == "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32"


@pytest.mark.parametrize("size", [32, 96, 160, 224])
def test_every_split_divides_multiples_of_32(size):
    for place in (0, -1):
        SPACE.topology([range(len(choices))[place] for choices in SPACE.dimensions]).grids(size)


def test_it_finds_what_is_measured():
    found = search(SPACE, toy, steps=300, seed=3)
    assert [stage.expansion for stage in found.answer.stages] == [6, 6, 6, 6]


def test_an_interrupted_search_goes_on_as_if_it_had_not_been():
    kept = []
    whole = search(SPACE, toy, steps=12, seed=1, kept=lambda found: kept.append(json.dumps(found.to_json())))
    assert len(kept) == 12
    measured = []
    resumed = search(
        SPACE,
        lambda topology: measured.append(topology) or toy(topology),
        steps=12,
        seed=1,
        known=Search.from_json(json.loads(kept[6])),
    )
    assert resumed == whole
    assert len(measured) == 5
    assert search(SPACE, toy, steps=12, seed=2) != whole
    with pytest.raises(SettingError, match="the search to go on with is another one: its step 0 drew"):
        search(SPACE, toy, steps=12, seed=2, known=whole)


def test_a_failed_measurement_counts_as_the_worst_so_far():
    good, bad = Measurement(4.0, 10.0), Measurement(0.0, math.inf)
    better, worse = Measurement(5.0, 5.0), Measurement(2.0, 20.0)
    assert last_reward([bad]) == last_reward([bad, bad]) == 0
    assert last_reward([good, better, bad]) == pytest.approx(-2, abs=1e-5)  # as the first: the whole range, twice
    assert last_reward([good, better, bad]) == last_reward([good, better, good])
    assert last_reward([good, bad, worse]) == 0  # in hindsight the one before was as bad
    assert last_reward([Measurement(1.0), Measurement(3.0)]) == pytest.approx(1, abs=1e-5)
    assert math.isfinite(search(SPACE, lambda topology: bad, steps=3).steps[-1].reward)
    json.dumps(search(SPACE, lambda topology: bad, steps=2).to_json(), allow_nan=False)


def test_the_policy_moves_towards_what_is_rewarded():
    policy = Policy([2, 3], torch.zeros(5))
    before = policy.log_prob([1, 2]).item()
    assert before == pytest.approx(math.log(1 / 6))
    policy.update([0, 0], 0.0)
    policy.update([1, 2], 1.0)
    assert policy.log_prob([1, 2]).item() > before
    assert policy.best() == (1, 2)


def test_a_real_search_of_small_networks():
    """Five steps on random images: the whole chain."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def promise(topology):
        return measure(lambda: AsViT(topology=topology, img_size=32), 32, images, points=3, repeats=1)

    runs = [search(Space(hidden=8), promise, steps=5) for _ in range(2)]
    assert runs[0] == runs[1]
    assert all(step.measurement.length > 0 for step in runs[0].steps)
    assert all(1 < step.measurement.condition < math.inf for step in runs[0].steps)
