"""Strategies: exponents out of a path, applied to other bases, targets and families."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from anyvit.costs.counts import Specification, count_macs, count_params, vit_macs, vit_params
from anyvit.errors import ModelError, SettingError
from anyvit.models import create_model
from anyvit.scaling.design.factors import FACTORS
from anyvit.scaling.design.scaling import greedy
from anyvit.scaling.design.stages import apply_to_stages, stages_of
from anyvit.scaling.design.strategy import Strategy, nearest
from anyvit.scaling.design.trace import Trace

DEIT_TINY = Specification(224, 16, 12, 3, 64)
BASE = Specification(64, 16, 2, 2, 32, 2.0)
NOTHING = dict.fromkeys(FACTORS, 0.0)
DEPTH = Strategy({**NOTHING, "depth": 1.0})
MIXED = Strategy({"depth": 0.3, "heads": 0.2, "head_dim": 0.1, "mlp_ratio": 0.0, "image_size": 0.1, "patch_size": -0.1})


def test_exponents_are_elasticities_of_the_whole_path():
    trace = greedy(BASE, 8 * vit_macs(BASE), vit_macs, lambda spec: spec.depth)
    strategy = Strategy.of(trace, {"cost": "macs", "batch": 1})
    growth = math.log(trace.cost / trace.base_cost)
    assert strategy.exponents == {**NOTHING, "depth": pytest.approx(math.log(trace.final.depth / 2) / growth)}
    assert strategy.choices == ("depth",) * len(trace.steps)
    assert strategy.conditions == {"cost": "macs", "batch": 1}


def test_it_leads_from_the_base_to_where_the_path_led():
    trace = greedy(BASE, 8 * vit_macs(BASE), vit_macs, lambda spec: spec.image_size + spec.head_dim)
    found = Strategy.of(trace).apply(BASE, trace.cost, vit_macs)
    assert found.spec == trace.final
    assert found.cost == trace.cost
    assert found.relative_error == 0


@pytest.mark.parametrize("times", [0.25, 0.5, 1, 2, 4])
@pytest.mark.parametrize("cost", [vit_macs, vit_params])
def test_depth_makes_good_what_rounding_has_lost(times, cost):
    found = MIXED.apply(DEIT_TINY, times * cost(DEIT_TINY), cost)
    assert found.cost == cost(found.spec)
    assert found.relative_error == found.cost / (times * cost(DEIT_TINY)) - 1
    others = [cost(replace(found.spec, depth=depth)) for depth in range(1, 97)]
    off = [abs(math.log(other / (times * cost(DEIT_TINY)))) for other in others]
    assert min(off) == off[found.spec.depth - 1]


def test_few_shapes_are_priced():
    priced = []

    def cost(spec):
        priced.append(spec)
        return vit_macs(spec)

    DEPTH.apply(DEIT_TINY, 3 * vit_macs(DEIT_TINY), cost)
    assert len(priced) <= 12  # each may be a measurement


def test_a_missed_target_is_warned_of(caplog):
    found = DEPTH.apply(DEIT_TINY, 20 * vit_macs(DEIT_TINY), vit_macs)
    assert found.spec.depth == 96
    assert "misses the target of 2.507e+10 by -61%" in caplog.text
    assert nearest([1, 2], lambda shape: shape, 1.4).spec == 1  # in proportion: 1.414 is the middle


@pytest.mark.parametrize("target", [0, -1, math.inf, math.nan])
def test_a_target_must_be_a_cost(target):
    with pytest.raises(SettingError, match="check the target"):
        DEPTH.apply(DEIT_TINY, target, vit_macs)


def test_a_path_that_does_not_grow_holds_no_strategy():
    with pytest.raises(SettingError, match="a path that does not grow holds no strategy"):
        Strategy.of(Trace(BASE, 1.0, 2.0, 2.0, 0.12))


def test_it_survives_json_and_refuses_what_is_none():
    strategy = Strategy({**NOTHING, "depth": 0.5}, ("depth",), {"batch": 1, "device": "abc"})
    assert Strategy.from_json(json.loads(json.dumps(strategy.to_json()))) == strategy
    assert str(strategy) == "depth +0.500"
    with pytest.raises(SettingError, match=r"an exponent for each of depth, heads.*not for \['width'\]"):
        Strategy.from_json({"exponents": {"width": 1.0}})


def test_a_detectors_short_side_is_a_multiple_of_32():
    assert MIXED.short_side(800, 1.0) == 800
    assert MIXED.short_side(800, 2.0) == 864  # 857


@pytest.mark.parametrize(
    ("name", "macs", "params"), [("pit_ti_224", 699_059_456, 4_847_272), ("pit_s_224", 2_870_796_096, 23_461_912)]
)
def test_pit_is_read_and_rebuilt_as_published(name, macs, params):
    stages = stages_of(name)
    assert (stages.depths, stages.stride, stages.image_size) == ((2, 6, 4), 32, 224)
    assert stages.macs() == macs
    assert count_params(stages.build()) == params


@pytest.mark.slow
def test_a_strategy_of_deit_scales_pit():
    base = stages_of("pit_ti_224")
    found = apply_to_stages(MIXED, base, 2 * base.macs(), lambda shape: shape.macs())
    assert abs(found.relative_error) <= 0.1
    assert found.spec.image_size % base.stride == 0
    assert found.cost == count_macs(found.spec.build(), found.spec.image_size)
    assert all(new >= old for new, old in zip(found.spec.depths, base.depths, strict=True))


def test_at_its_own_cost_a_backbone_stays_as_it_is():
    base = stages_of("swin_tiny_patch4_window7_224")
    assert (base.depths, base.heads, base.head_dims) == ((2, 2, 6, 2), (3, 6, 12, 24), (32,) * 4)
    assert base.stride == 32
    found = apply_to_stages(DEPTH, base, 4_490_566_656, lambda shape: 4_490_566_656 * sum(shape.depths) / 12)
    assert found.spec == base


@pytest.mark.parametrize("name", ["pit_ti_224", "swin_tiny_patch4_window7_224"])
def test_wider_stages_stay_multiples_of_each_other(name):
    wider, base = Strategy({**NOTHING, "heads": 0.5, "head_dim": 0.2}), stages_of(name)
    found = apply_to_stages(wider, base, 2.5, lambda shape: sum(shape.depths) / sum(base.depths)).spec
    assert found.heads[0] > base.heads[0]
    assert [count // found.heads[0] for count in found.heads] == [count // base.heads[0] for count in base.heads]
    with torch.device("meta"):  # the widths fit each other
        assert count_params(found.build()) > 1.5 * count_params(base.build())


def test_other_families_are_refused():
    with pytest.raises(ModelError, match="test_vit is neither a PiT nor a Swin"):
        stages_of("test_vit")


def test_a_specification_is_a_shaped_vit():
    spec = MIXED.apply(DEIT_TINY, 0.02 * vit_macs(DEIT_TINY), vit_macs).spec
    model = create_model("shaped_vit", **{name: getattr(spec, name) for name in (*FACTORS, "num_classes")})
    assert count_params(model) == vit_params(spec)
