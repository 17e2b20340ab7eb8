"""How far a pupil's answer q is from a teacher's p: alpha-divergences, and the worse of two of them.

Of AlphaNet (arXiv 2102.07954), as ElasticViT (arXiv 2303.09730) teaches its smallest networks; and how it makes its
teachers' answers surer. A divergence is not minimized itself, for the ratio p / q grows without bound where the pupil
is sure and wrong: its gradient is written with the ratio as a constant, which may then be clipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CLIP = 5.0


def alpha_divergence(logits: Tensor, target: Tensor, alpha: float, clip: float = CLIP) -> tuple[Tensor, Tensor]:
    """The divergence of each image, without a gradient, and a term with its clipped gradient.

    Args:
        logits: The pupil's, (B, K).
        target: p, probabilities (B, K).
        alpha: -1 and 0 mind classes that only the pupil gives a chance, 1 those that only the teacher does.
        clip: The most that a power of p / q counts; with alpha 1 there is no such bound.

    Returns:
        Two tensors (B,).
    """
    log_q = logits.log_softmax(1)
    q, target = log_q.detach().exp(), target.detach()
    log_ratio = target.log() - log_q.detach()  # in logarithms, for q may be too small for a quotient
    if alpha == 0:
        log_ratio = log_ratio.clamp(max=math.log(clip))
        divergence, weight = -q * log_ratio, q * (log_ratio - 1)
    elif alpha == 1:
        divergence, weight = torch.where(target > 0, target * log_ratio, 0), target
    else:
        power, rest = (alpha * log_ratio).exp().clamp(max=clip), 1 / (alpha * (alpha - 1))
        divergence, weight = q * (power - 1) * rest, q * (power / alpha + rest)
    return divergence.sum(1), -(weight * log_q).sum(1)


def adaptive_divergence(
    logits: Tensor, target: Tensor, alphas: tuple[float, float] = (-1.0, 1.0), clip: float = CLIP
) -> Tensor:
    """Of each image the gradient term of the larger of two divergences; the mean over images.

    Args:
        logits: The pupil's, (B, K).
        target: Probabilities (B, K).
        alphas: Of the two.
        clip: See `alpha_divergence`.
    """
    (left, left_term), (right, right_term) = (alpha_divergence(logits, target, alpha, clip) for alpha in alphas)
    return torch.where(left > right, left_term, right_term).mean()


def sharpened(logits: Sequence[Tensor], temperature: float = 0.2) -> Tensor:
    """The mean of several teachers' answers, each made surer, (B, K).

    Args:
        logits: Of each teacher, (B, K).
        temperature: What they are divided by; below 1.
    """
    return torch.stack([(own / temperature).softmax(1) for own in logits]).mean(0)
