"""Counted costs, timed costs, and the conditions they hold under."""

from __future__ import annotations

import pytest
import torch

from anyvit.backends import BACKENDS
from anyvit.costs.counts import count_params
from anyvit.models import create_model
from anyvit.protocols import Device
from anyvit.scaling.pricing import THROUGHPUT_BATCH, Conditions, count, price
from anyvit.scaling.shrink import lever_named
from anyvit.scaling.space import Space
from anyvit.scaling.workshop import Workshop, reshape

HASTY = {"warmup_runs": 1, "warmup_s": 0, "runs": 3, "rounds": 1, "min_time_s": 0}


@pytest.fixture(scope="module")
def model():
    return create_model("hydravit_tiny_patch2_8", num_classes=4).eval()


@pytest.fixture(scope="module")
def wanted(model):
    return list(
        Space.of(model, [lever_named("heads")], BACKENDS[:1], Device("cpu", "any", 2, features=("avx512_bf16",)))
    )


def test_conditions_give_a_fixed_example():
    conditions = Conditions(8, batch=3)
    assert conditions.example().shape == (3, 3, 8, 8)
    assert conditions.example(5).shape == (5, 3, 8, 8)
    assert torch.equal(conditions.example(), Conditions(8, batch=3).example())


def test_counts_are_those_of_the_reshaped_model(model, wanted):
    counts = count(Workshop(model, Conditions(8).example()), wanted, 8)
    assert list(counts) == [candidate.id for candidate in wanted]
    for candidate in wanted:
        assert counts[candidate.id]["params"] == count_params(reshape(model, candidate))
        assert counts[candidate.id]["size"] == pytest.approx(4 * counts[candidate.id]["params"])
    macs = [counts[candidate.id]["macs"] for candidate in wanted]
    assert macs == sorted(macs, reverse=True)


def test_price_gives_every_candidate_in_order_with_positive_figures(model, wanted):
    results = price(Workshop(model, Conditions(8).example()), wanted, Conditions(8), **HASTY)
    assert [result.candidate for result in results] == list(wanted)
    for result in results:
        assert set(result.costs) == {"params", "macs", "size", "latency", "latency_p95", "latency_expected"}
        assert 0 < result.costs["latency"] <= result.costs["latency_p95"]
        assert result.accuracy is None


def test_throughput_and_whole_calls_are_priced_where_asked(model, wanted):
    seen = []

    def end_to_end(runner):
        return lambda images: (seen.append(images.shape), runner(images))

    (result,) = price(
        Workshop(model, Conditions(8).example()),
        wanted[:1],
        Conditions(8, batch=2),
        throughput=True,
        end_to_end=end_to_end,
        **HASTY,
    )
    assert result.costs["throughput"] > 0
    assert result.costs["latency_e2e"] > 0
    assert set(seen) == {(2, 3, 8, 8)}
    assert THROUGHPUT_BATCH == 32


def test_progress_is_told(model, wanted):
    events = []
    price(Workshop(model, Conditions(8).example()), wanted[:1], Conditions(8), progress=events.append, **HASTY)
    assert {event.stage for event in events} == {"measure"}
