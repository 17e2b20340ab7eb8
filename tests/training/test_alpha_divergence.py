"""Alpha-divergences by their definition, and that they stay finite where a pupil is sure and wrong."""

import pytest
import torch
from torch.nn import functional as F

from anyvit.training.alpha_divergence import adaptive_divergence, alpha_divergence, sharpened

LOGITS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGET = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)


def by_definition(logits, alpha):
    q, p = logits.softmax(1), TARGET
    if alpha in (0, 1):
        return (q * (q / p).log()).sum(1) if alpha == 0 else (p * (p / q).log()).sum(1)
    return (q * ((p / q) ** alpha - 1) / (alpha * (alpha - 1))).sum(1)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0])
def test_without_a_clip_value_and_gradient_are_those_of_the_definition(alpha):
    own, true = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    value, term = alpha_divergence(own, TARGET, alpha, clip=1e9)
    expected = by_definition(true, alpha)
    torch.testing.assert_close(value, expected)
    term.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(own.grad, true.grad)


def test_the_larger_of_two_is_learned():
    left, right = (alpha_divergence(LOGITS, TARGET, alpha) for alpha in (-1.0, 1.0))
    larger = [a_term if a > b else b_term for a, a_term, b, b_term in zip(*left, *right, strict=True)]
    assert 0 < (left[0] > right[0]).sum() < len(LOGITS)
    torch.testing.assert_close(adaptive_divergence(LOGITS, TARGET), torch.stack(larger).mean())


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 1.0])
def test_a_sure_and_wrong_pupil(alpha):
    logits = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    _, term = alpha_divergence(logits, torch.tensor([[0.0, 1e-30, 1.0]]), alpha)
    term.sum().backward()
    assert logits.grad.isfinite().all()


def test_teachers_become_surer_and_agree():
    one = sharpened([LOGITS])
    torch.testing.assert_close(one, (5 * LOGITS).softmax(1))
    torch.testing.assert_close(sharpened([LOGITS, -LOGITS]), (one + (-5 * LOGITS).softmax(1)) / 2)
    assert F.cross_entropy(LOGITS, one) < F.cross_entropy(LOGITS, LOGITS.softmax(1))
