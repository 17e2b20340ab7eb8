"""The default model of a run, by the rule that the documentation states. The prices are made up."""

from __future__ import annotations

import pytest

from anyvit.costs.budget import Budget
from anyvit.models import PRESETS
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.design.preset import choose_preset

WIDTHS = {"tiny": 1, "small": 10, "base": 100}


def ends(name):
    """Cheapest and full size: at 8 px, 0.1 to 0.3 ms for tiny, ten times as much for small and again for base."""
    preset = PRESETS[name]
    scale = WIDTHS[name.split("_")[1]] * preset.image_size / 8
    return [
        Result(
            Candidate((Step("heads", setting),), Step("torch")),
            {"latency": 1e-4 * times * scale, "throughput": 1e4 / times / scale, "params": 1e3 * times * scale},
        )
        for setting, times in (({"heads": preset.smallest}, 1), ({}, 3))
    ]


def chosen(image_size, budget=""):
    return choose_preset(image_size, Budget.parse(budget), ends)


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        ("latency<=0.2ms", "hydravit_tiny_patch2_8"),
        ("latency<=2ms", "hydravit_small_patch2_8"),
        ("latency<=20ms", "hydravit_base_patch2_8"),
        ("latency<=10s", "hydravit_base_patch2_8"),
        ("throughput>=5000/s", "hydravit_tiny_patch2_8"),
        ("throughput>=50/s", "hydravit_base_patch2_8"),
    ],
)
def test_the_range_that_best_straddles_the_bound(budget, name):
    choice = chosen(8, budget)
    assert choice.preset.name == name
    assert choice.refusal is None
    assert f"best straddles {budget}" in choice.why


@pytest.mark.parametrize(
    ("image_size", "size"), [(1, 8), (8, 8), (15, 8), (17, 32), (28, 32), (64, 64), (100, 96), (500, 224), (4000, 224)]
)
def test_the_size_nearest_to_the_images_and_the_small_one_without_a_bound_on_latency(image_size, size):
    choice = chosen(image_size)
    assert (choice.preset.image_size, choice.refusal) == (size, None)
    assert "_small_" in choice.preset.name
    assert choice.why.endswith("without a bound on latency the small one is the default")
    assert f"{size} px is the preset size nearest to the images ({image_size} px)" in choice.why


def test_the_next_smaller_size_where_none_reaches_the_budget():
    choice = chosen(224, "latency<=1ms")  # the fastest at 96 px takes 1.2 ms, at 64 px 0.8 ms
    assert choice.preset.name == "hydravit_tiny_patch8_64"
    assert choice.why.startswith("no preset for 224 px reaches the budget, 64 px is the next smaller size")
    assert choice.refusal is None


def test_the_small_one_gives_way_where_only_another_keeps_the_bounds():
    choice = chosen(8, "params<=5k")
    assert choice.preset.name == "hydravit_tiny_patch2_8"
    assert choice.why.endswith("the small one cannot keep params<=5k")


def test_the_refusal_says_what_can_be_reached():
    choice = chosen(100, "latency<=1us")
    assert choice.preset.name == "hydravit_tiny_patch2_8"
    assert "latency<=1us (best: 100 us with heads1-torch) cannot be met by any of 6 candidates" in choice.refusal


def test_no_larger_size_is_ever_priced():
    asked = []
    choose_preset(30, Budget.parse("latency<=1us"), lambda name: (asked.append(name), ends(name))[1])
    assert {PRESETS[name].image_size for name in asked} == {8, 32}
