"""What a shape probably takes: the terms, their fit, the choice between two kinds, and how far they are off."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from anyvit.costs.counts import Specification, vit_macs
from anyvit.costs.predictor import (
    BoostedPredictor,
    LinearPredictor,
    PredictorError,
    fit_predictor,
    fit_terms,
    terms,
)
from anyvit.errors import SettingError
from anyvit.scaling.design.factors import Limits, latin_hypercube

DEIT_TINY = Specification(224, 16, 12, 3, 64)
SHAPES = latin_hypercube(Limits(), 60, accept=lambda spec: vit_macs(spec) < 5e9)
WEIGHTS = np.array([3e-4, 2e-4, 0.02, 0.015, 0.03, 0.012, 1e-3, 0.0])


def law(spec):
    """Seconds by a law that the linear predictor can learn."""
    return float(terms(spec) @ WEIGHTS)


def test_terms_are_what_a_call_is_made_of():
    one, depth, patches, projections, attention, mlps, maps, channels = terms(DEIT_TINY)
    assert (one, depth) == (1, 12)
    macs = 1e9 * (patches + projections + attention + mlps)
    assert macs == pytest.approx(vit_macs(DEIT_TINY) - 192 * 1000)  # the head is in no term
    assert maps == pytest.approx(1e-6 * 12 * 197**2 * 3)
    assert channels == pytest.approx(1e-6 * 12 * 197 * 192)


def test_the_fit_finds_the_weights_behind_exact_latencies():
    features = np.stack([terms(spec) for spec in SHAPES])
    assert fit_terms(features, features @ WEIGHTS) == pytest.approx(WEIGHTS, rel=1e-4, abs=1e-9)


def test_no_weight_is_negative():
    features = np.stack([terms(spec) for spec in SHAPES])
    falling = 1 / (1 + np.array([spec.depth for spec in SHAPES]))
    assert fit_terms(features, falling).min() >= 0


def test_the_linear_predictor_survives_json():
    predictor = LinearPredictor.fit(SHAPES, [law(spec) for spec in SHAPES])
    again = LinearPredictor.from_json(predictor.to_json())
    assert again == predictor
    assert again(DEIT_TINY) == pytest.approx(law(DEIT_TINY), rel=1e-6)


def test_a_steady_device_is_predicted_well_and_said_so():
    noise = np.random.default_rng(0).normal(1, 0.02, len(SHAPES))
    predictor, error = fit_predictor(SHAPES, [law(spec) * factor for spec, factor in zip(SHAPES, noise, strict=True)])
    assert error.usable
    assert error.count == 12
    assert error.median <= error.mape * 2
    assert error.rank_correlation >= 0.98
    assert predictor(DEIT_TINY) == pytest.approx(law(DEIT_TINY), rel=0.05)
    assert "on 12 held-out shapes (Kendall's tau" in str(error)
    assert "measure instead" not in str(error)
    assert error.to_json()["usable"]


def test_trees_are_chosen_where_the_sum_leaves_a_step():
    def stepped(spec):
        return law(spec) * (2.0 if spec.head_dim > 64 else 1.0)

    latencies = [stepped(spec) for spec in SHAPES]
    predictor, error = fit_predictor(SHAPES, latencies)
    assert isinstance(predictor, BoostedPredictor)
    assert "boosted trees" in str(error)
    linear = PredictorError.of("linear", LinearPredictor.fit(SHAPES, latencies), SHAPES, latencies)
    assert PredictorError.of("both", predictor, SHAPES, latencies).mape < linear.mape / 2
    again, _ = fit_predictor(SHAPES, latencies)
    assert again(DEIT_TINY) == predictor(DEIT_TINY)


def test_noise_is_not_to_be_trusted():
    chance = np.random.default_rng(0)
    _, error = fit_predictor(SHAPES, chance.lognormal(0, 1, len(SHAPES)).tolist())
    assert not error.usable
    assert "too far off for a search, measure instead" in str(error)


@pytest.mark.parametrize(
    ("mape", "tau", "usable"), [(0.1, 0.9, True), (0.11, 0.99, False), (0.01, 0.89, False), (0.05, math.nan, False)]
)
def test_a_search_asks_for_small_errors_and_the_right_order(mape, tau, usable):
    assert PredictorError("any", 10, mape, mape, tau, 1.0).usable is usable


def test_too_little_or_impossible_data_is_refused():
    latencies = [law(spec) for spec in SHAPES]
    with pytest.raises(SettingError, match="at least 30 measured shapes, not 29. Measure 1 more."):
        fit_predictor(SHAPES[:29], latencies[:29])
    with pytest.raises(SettingError, match="held_out 0.6 must be a share above 0 and up to 0.5"):
        fit_predictor(SHAPES, latencies, held_out=0.6)
    with pytest.raises(SettingError, match=r"above 0 and finite, not nan of Specification\(image_size"):
        fit_predictor(SHAPES, [*latencies[:-1], math.nan])


def test_the_number_of_classes_does_not_confuse_it():
    predictor, _ = fit_predictor(SHAPES, [law(spec) for spec in SHAPES])
    assert predictor(replace(DEIT_TINY, num_classes=10)) == pytest.approx(law(DEIT_TINY), rel=0.02)
