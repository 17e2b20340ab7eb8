"""Splits are complete, disjoint, seeded and stratified, whatever the labels."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from anyvit.data.splitting import class_weights, stratified

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=120).map(np.array)
SHARES = st.floats(0.05, 0.5)
SEEDS = st.integers(0, 2**32)


def distinct(labels):
    return np.arange(len(labels), dtype=np.uint64) * np.uint64(7919)


@given(LABELS, SHARES, SEEDS)
def test_every_class_gives_its_share_and_keeps_one(labels, share, seed):
    held_out = stratified(labels, distinct(labels), share, seed)
    assert held_out.shape == labels.shape
    for label in np.unique(labels):
        total, given_away = (labels == label).sum(), held_out[labels == label].sum()
        assert given_away == (0 if total == 1 else min(max(1, round(share * total)), total - 1))


@given(LABELS, SEEDS)
def test_the_same_seed_draws_the_same_in_any_order(labels, seed):
    groups = distinct(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out = stratified(labels, groups, 0.2, seed)
    np.testing.assert_array_equal(stratified(labels[order], groups[order], 0.2, seed), held_out[order])


@given(LABELS, st.data(), SEEDS)
def test_equal_content_is_never_separated(labels, data, seed):
    groups = np.array(
        data.draw(st.lists(st.integers(0, 30), min_size=len(labels), max_size=len(labels))), dtype=np.uint64
    )
    held_out = stratified(labels, groups, 0.3, seed)
    assert not set(groups[held_out]) & set(groups[~held_out])


def test_another_seed_draws_otherwise():
    labels = np.zeros(100, dtype=np.int64)
    draws = {stratified(labels, distinct(labels), 0.2, seed).tobytes() for seed in range(10)}
    assert len(draws) == 10


@given(LABELS)
def test_class_weights_average_to_one(labels):
    weights = class_weights(labels, 6)
    counts = np.bincount(labels, minlength=6)
    rarest = counts[counts > 0].min()
    assert (weights is None) == (counts.max() < 3 * rarest)
    if weights is not None:
        np.testing.assert_allclose(weights[labels].mean(), 1, rtol=1e-5)
        np.testing.assert_allclose((weights * counts)[counts > 0], len(labels) / (counts > 0).sum(), rtol=1e-5)
        assert (weights[counts == 0] == 0).all()
