"""Limits and steps of the factors, rounding, and shapes that are spread over them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from anyvit.costs.counts import Specification, vit_macs
from anyvit.errors import SettingError
from anyvit.scaling.design.factors import FACTORS, Limits, latin_hypercube, rounded, scaled

DEIT_TINY = Specification(224, 16, 12, 3, 64)


def values(specs, factor):
    return [getattr(spec, factor) for spec in specs]


@pytest.mark.parametrize(
    ("factor", "first", "last"),
    [
        ("depth", 13, 48),
        ("heads", 4, 32),
        ("head_dim", 72, 128),
        ("mlp_ratio", 4.5, 8.0),
        ("image_size", 240, 512),
        ("patch_size", 14, 4),
    ],
)
def test_a_factor_grows_in_its_steps_to_its_limit(factor, first, last):
    grown = values(Limits().grown(DEIT_TINY, factor), factor)
    assert (grown[0], grown[-1]) == (first, last)


def test_patches_divide_the_image():
    assert values(Limits().grown(DEIT_TINY, "patch_size"), "patch_size") == [14, 8, 7, 4]
    assert values(Limits().grown(replace(DEIT_TINY, image_size=160), "patch_size"), "patch_size") == [8, 4]


@pytest.mark.parametrize(
    ("factor", "value"),
    [("depth", 11), ("heads", 2), ("head_dim", 56), ("mlp_ratio", 3.5), ("image_size", 208), ("patch_size", 28)],
)
def test_a_factor_shrinks_by_one_step(factor, value):
    shrunk = Limits().shrunk(DEIT_TINY, factor)
    assert shrunk == replace(DEIT_TINY, **{factor: value})


def test_at_its_limit_a_factor_goes_no_further():
    smallest = Specification(64, 32, 1, 1, 8, 1.0)
    assert all(Limits().shrunk(smallest, factor) is None for factor in FACTORS)
    largest = Specification(512, 4, 48, 32, 128, 8.0)
    assert not any(Limits().grown(largest, factor) for factor in FACTORS)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"depth": (4, 2, 1)}, "depth from 4 to 2 in steps of 1 holds nothing"),
        ({"head_dim": (8, 128, 4)}, "head_dim from 8 in steps of 4 is not always a multiple of 8"),
        ({"head_dim": (12, 128, 8)}, "head_dim from 12 in steps of 8 is not always a multiple of 8"),
        ({"image_size": (20, 30)}, r"no image size from 20 to 30 is a multiple of a patch size of \(32, 16\)"),
    ],
)
def test_limits_that_hold_nothing_are_refused(wrong, words):
    with pytest.raises(SettingError, match=words):
        Limits(**{"patch_sizes": (32, 16), **wrong})


def test_limits_survive_json():
    limits = Limits(depth=(1, 6, 1), image_size=(16, 64), patch_sizes=(8, 4, 2))
    assert Limits.from_json(json.loads(json.dumps(limits.to_json()))) == limits


def test_rounding_is_half_up_and_at_least_one():
    assert [rounded(value) for value in (0.2, 1.5, 2.5, 2.49)] == [1, 2, 3, 2]
    assert [rounded(value, 8) for value in (3, 12, 11.9)] == [8, 16, 8]


def test_scaled_shapes_can_be_built():
    by = {"depth": 1.3, "heads": 1.5, "head_dim": 0.9, "mlp_ratio": 0.8, "image_size": 0.7, "patch_size": 0.7}
    spec = scaled(DEIT_TINY, by, Limits().patch_sizes)
    assert spec == Specification(154, 14, 16, 5, 56, 3.0)  # patch 11.2 is nearest to 14; image 156.8 to 11 * 14
    assert scaled(replace(DEIT_TINY, patch_size=2), {}, (16, 8)).patch_size == 2  # what the base has may stay


def test_a_hypercube_covers_every_factor():
    specs = latin_hypercube(Limits(), 40, seed=1)
    assert len(set(specs)) == 40
    for factor in FACTORS:
        found = values(specs, factor)
        assert max(found) >= 3 * min(found)
    assert specs == latin_hypercube(Limits(), 40, seed=1)
    assert specs != latin_hypercube(Limits(), 40, seed=2)


def test_a_hypercube_keeps_to_what_is_accepted():
    limits = Limits(image_size=(16, 64), patch_sizes=(8, 4, 2), depth=(1, 6, 1), heads=(1, 4, 1))
    specs = latin_hypercube(limits, 30, accept=lambda spec: vit_macs(spec) < 2e7, num_classes=10)
    assert all(vit_macs(spec) < 2e7 and spec.num_classes == 10 for spec in specs)
    with pytest.raises(SettingError, match="0 of 6000 shapes drawn were accepted and different, not 30: widen"):
        latin_hypercube(limits, 30, accept=lambda spec: False)
