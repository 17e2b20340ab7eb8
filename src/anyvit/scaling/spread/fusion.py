"""One answer from the features of several sub-models, of which some may be missing (ED-ViT, arXiv 2410.11650).

A missing sub-model's features are zeros, here and in training, where features go missing at random. Features come out
of a norm and are never all zero, so the head can tell "absent" from any answer and learns to do without. Nothing need
be kept to fill in, and the head is two linear layers and no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyvit.errors import SettingError
from anyvit.protocols import Event, Progress, silent

SHRINK = 0.5
"""The share of the features that the hidden layer has."""


def hidden_width(width: int) -> int:
    """Units between the two layers, of so many features."""
    return max(1, int(SHRINK * width))


class Fusion(nn.Module):
    """Features, in the order of the sub-models, to logits of all classes.

    Args:
        widths: By sub-model, the numbers that it sends.
        num_classes: C.
    """

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.num_classes = num_classes
        hidden = hidden_width(sum(widths))
        self.fc1 = nn.Linear(sum(widths), hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, features: Sequence[Tensor | None]) -> Tensor:
        """Logits (B, C) of features (B, width) of each sub-model; None where one is missing.

        Raises:
            SettingError: More or fewer features than sub-models, or all missing.
        """
        there = next((part for part in features if part is not None), None)
        if there is None or len(features) != len(self.widths):
            missing = sum(part is None for part in features)
            raise SettingError(
                f"{len(self.widths)} sub-models are fused, one of them at least: got {len(features)}, {missing} missing"
            )
        filled = [
            there.new_zeros(len(there), width) if part is None else part
            for part, width in zip(features, self.widths, strict=True)
        ]
        return self.fuse(torch.cat(filled, dim=1))

    def fuse(self, features: Tensor) -> Tensor:
        """Logits of features (B, D), all sub-models side by side, zeros for the missing."""
        return self.fc2(F.relu(self.fc1(features)))


def without_missing(features: Tensor, widths: Sequence[int], present: Tensor) -> Tensor:
    """Features (B, D) with zeros where `present` (B, sub-models) or (sub-models,) is False."""
    return features * present.repeat_interleave(torch.tensor(widths), dim=-1)


def draw_present(images: int, submodels: int, missing: float, generator: torch.Generator) -> Tensor:
    """Who is there (images, sub-models): each is missing with probability `missing`, but one always stays."""
    present = torch.rand(images, submodels, generator=generator) >= missing
    stays = torch.randint(submodels, (images,), generator=generator)
    nobody = ~present.any(dim=1)
    present[nobody, stays[nobody]] = True
    return present


def train_fusion(
    features: Tensor,
    labels: Tensor,
    widths: Sequence[int],
    num_classes: int,
    *,
    epochs: float = 15,
    batch_size: int = 64,
    lr: float = 1e-3,
    missing: float = 0.2,
    seed: int = 0,
    progress: Progress = silent,
) -> Fusion:
    """A fusion head for features that were computed once, of sub-models that no longer change.

    Adam with a cosine to zero; everything random follows from `seed`.

    Args:
        features: (B, D) of the training images, all sub-models side by side.
        labels: (B,), positions among all classes.
        widths: By sub-model, how many of the D are its.
        num_classes: C.
        epochs: How often each image is seen; at least one step is made.
        batch_size: Images a step.
        lr: The learning rate at the start.
        missing: How often a sub-model is missing; 0 trains without.
        seed: Of weights, order and who is missing.
        progress: Called with the share that is done.

    Raises:
        SettingError: `missing` is not in [0, 1), or features, widths and labels do not match.
    """
    if not 0 <= missing < 1:
        raise SettingError(f"missing must be in [0, 1), the share of images that a sub-model misses: got {missing}")
    if features.shape != (len(labels), sum(widths)):
        raise SettingError(f"features {tuple(features.shape)} are not {len(labels)} images of {sum(widths)} numbers")
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fusion = Fusion(widths, num_classes)
    optimizer = torch.optim.Adam(fusion.parameters(), lr=lr)
    steps = max(1, math.ceil(epochs * len(labels) / batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < min(batch_size, len(labels)):
            order = torch.randperm(len(labels), generator=draw)
        batch, order = order[:batch_size], order[batch_size:]
        present = draw_present(len(batch), len(widths), missing, draw)
        logits = fusion.fuse(without_missing(features[batch], widths, present))
        loss = F.cross_entropy(logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 19 or step == steps - 1:
            progress(Event("fusion", done=(step + 1) / steps, figures={"loss": loss.item()}))
    return fusion.eval()


def confidences(
    logits: Sequence[Tensor | None], groups: Sequence[Sequence[int]], num_classes: int, *, other_class: bool = True
) -> Tensor:
    """Scores (B, C) without a trained head: how sure each sub-model is of each of its classes.

    With the other class that is the share which remains beside it, so a sub-model that takes an image for a stranger
    says little of its own classes. The classes of a missing sub-model score 0.

    Args:
        logits: By sub-model, (B, k) or with the other class (B, 1 + k); None where one is missing.
        groups: By sub-model, its k classes.
        num_classes: C.
        other_class: Output 0 stands for all other classes.

    Raises:
        SettingError: All are missing.
    """
    there = next((part for part in logits if part is not None), None)
    if there is None:
        raise SettingError("all sub-models are missing: one at least must answer")
    scores = there.new_zeros(len(there), num_classes)
    for part, classes in zip(logits, groups, strict=True):
        if part is not None:
            scores[:, list(classes)] = part.softmax(dim=1)[:, int(other_class) :]
    return scores
