"""With links that cost nothing the simulation gives the formulas; with others it loses what they take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anyvit.errors import SettingError
from anyvit.models.hsvit import VARIANTS
from anyvit.scaling.spread.boards import CostTable
from anyvit.scaling.spread.schemes import (
    SCHEMES,
    Link,
    simulate,
    utilisation_of_hsvit,
    utilisation_of_model,
    utilisation_of_pipeline,
)
from anyvit.scaling.spread.sizes import HSViTShape

SHAPE = HSViTShape.of(VARIANTS["hsvit_c4a8_32"].arguments)
TRUNK, ATTENTION = 0.03, 0.16
TABLE = CostTable(  # a machine whose times are those of the formulas
    "ideal",
    SHAPE.whole().macs,
    {
        "hub": {1: ATTENTION / 16, 16: ATTENTION},
        "boards": {1: TRUNK + ATTENTION / 16, 16: TRUNK + ATTENTION},
    },
    {"hub": TRUNK, "boards": 0.0},
    "",
)


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("devices", [1, 2, 4, 8, 16])
def test_free_links_give_the_formulas(devices, batch):
    formulas = {
        "model": utilisation_of_model(devices),
        "pipeline": utilisation_of_pipeline(devices, batch),
        "hub": utilisation_of_hsvit(devices, TRUNK, ATTENTION),
        "boards": utilisation_of_hsvit(devices, TRUNK, ATTENTION),
    }
    assert set(formulas) == set(SCHEMES)
    for scheme, formula in formulas.items():
        outcome = simulate(scheme, devices, SHAPE, TABLE, batch=batch)
        assert outcome.utilisation == pytest.approx(formula)
        assert outcome.throughput == pytest.approx(formula * devices / (TRUNK + ATTENTION))


def test_groups_that_do_not_come_out_even_wait_for_the_largest():
    assert simulate("hub", 3, SHAPE, TABLE).throughput == pytest.approx(1 / (TRUNK + ATTENTION * 6 / 16))
    assert simulate("hub", 64, SHAPE, TABLE).throughput == simulate("hub", 16, SHAPE, TABLE).throughput
    wide = replace(SHAPE, num_groups=256)
    assert simulate("hub", 256, wide, TABLE).throughput > simulate("hub", 16, wide, TABLE).throughput


def test_links_take_their_time():
    link = Link(bandwidth=1e6, latency=0.01)
    images = 1 / simulate("model", 4, SHAPE, TABLE, link).throughput
    assert images == pytest.approx(TRUNK + ATTENTION + 3 * (512 * 64 * 4 / 1e6 + 0.01))
    one = 1 / simulate("hub", 16, SHAPE, TABLE, link, batch=1).throughput
    assert one == pytest.approx(TRUNK + ATTENTION / 16 + (8192 + 256) / 1e6 + 0.02)
    one = 1 / simulate("boards", 16, SHAPE, TABLE, link, batch=1).throughput
    assert one == pytest.approx(TRUNK + ATTENTION / 16 + (3072 + 256) / 1e6 + 0.02)


def test_a_link_that_is_too_slow_bounds_a_batch():
    slow = simulate("boards", 16, SHAPE, TABLE, Link(bandwidth=3072.0), batch=200)
    assert slow.throughput == pytest.approx(1.0, rel=0.05)


def test_what_cannot_be_simulated():
    with pytest.raises(SettingError, match="unknown scheme 'pipe'. Did you mean 'pipeline'"):
        simulate("pipe", 1, SHAPE, TABLE)
    with pytest.raises(SettingError, match="devices 0 and batch 32 must be at least 1"):
        simulate("hub", 0, SHAPE, TABLE)
