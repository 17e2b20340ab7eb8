"""Mixup where each patch token has a label of its own: half a batch is cut and pasted, half is blended (ViT-ResNAS).

Letters:  B images, K classes, P tokens a side of the last grid
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta

_CUT, _BLEND = 1.0, 0.8
"""Alpha of the Beta distributions that the two shares come from."""


@dataclass(frozen=True, eq=False, slots=True)
class Draws:
    """What is random.

    Attributes:
        box: Top, left, height and width in tokens of what is pasted, where it was in the other image.
        pasted: The other image of each in the first half of the batch, a permutation (B / 2,).
        share: What stays of an image in the second half.
        blended: The other image of each in the second half, a permutation (B - B / 2,).
    """

    box: tuple[int, int, int, int]
    pasted: Tensor
    share: float
    blended: Tensor


def draw(batch: int, side: int) -> Draws:
    """From PyTorch's generator.

    Args:
        batch: B.
        side: P.
    """
    area = int(side**2 * Beta(_CUT, _CUT).sample().item())
    height = _between(1, max(1, min(side, area) - 1))
    width = area // height
    if width > side:
        height, width = area // side, side
    box = (_between(0, side - height), _between(0, side - width), height, width)
    pasted = torch.randperm(batch // 2)
    share = Beta(_BLEND, _BLEND).sample().item()
    return Draws(box, pasted, share, torch.randperm(batch - batch // 2))


def _between(low: int, high: int) -> int:
    """From `low` to `high` - 1, and `low` where there is nothing between."""
    return int(torch.randint(low, max(high, low + 1), ()))


def mix(images: Tensor, targets: Tensor, side: int, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Mixed images, and what they show: as a whole, and at each token.

    Args:
        images: (B, C, S, S), with S a multiple of P.
        targets: Soft labels (B, K).
        side: P.
        draws: For this batch.

    Returns:
        Images, targets (B, K), and targets of the tokens (B, P * P, K), row by row.
    """
    half, size = len(images) // 2, images.shape[-1] // side
    top, left, height, width = draws.box
    rows, columns = slice(top, top + height), slice(left, left + width)
    area = (..., _scaled(rows, size), _scaled(columns, size))
    first, second = images[:half].clone(), images[half:]
    first[area] = images[:half][draws.pasted][area]
    blended = draws.share * second + (1 - draws.share) * second[draws.blended]

    own, other = targets[:half], targets[:half][draws.pasted]
    kept = 1 - height * width / side**2
    of_second = draws.share * targets[half:] + (1 - draws.share) * targets[half:][draws.blended]
    of_tokens = own[:, None, None].repeat(1, side, side, 1)
    of_tokens[:, rows, columns] = other[:, None, None]
    return (
        torch.cat([first, blended]),
        torch.cat([kept * own + (1 - kept) * other, of_second]),
        torch.cat([of_tokens.flatten(1, 2), of_second[:, None].expand(-1, side**2, -1)]),
    )


def _scaled(tokens: slice, size: int) -> slice:
    return slice(tokens.start * size, tokens.stop * size)
