"""A training-free score that ranks plain ViTs of different shapes, of As-ViT's measurements (arXiv 2202.11921, 3.1).

Three things are measured on weights that are drawn so that each layer keeps the variance of what it gets; with the
usual small ones a block adds next to nothing, and depth goes unseen.

- Length: how long a circle of images gets in all tokens before the final norm, norms in place. As published, the mean
  over the tokens is followed, which hides that a finer grid sees more, and without norms, which leaves depth alone.
- Condition of the tangent kernel on real images: how unevenly the model learns from them.
- Effective rank of the same kernel, centred: how little of what it learns from one image serves another. This is ours.

The score adds their logarithms with weights that were fitted to 32 shapes that were trained; how it ranks others
is in benchmarks/design_ranking.py. Compare scores of one image size and one set of images only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anyvit.costs.counts import Specification
from anyvit.scaling.design.shape import Worth, form_of
from anyvit.scaling.design.training_free import circle, condition, curve_of, features_of, ntk

POINTS = 4
"""Of the circle."""

WEIGHTS = {"length": 1.0, "condition": -0.7, "rank": -3.1}
"""Of the logarithms of what is measured."""

IMAGES = 16
"""That the tangent kernel is of."""


class ShapeScore:
    """Scores shapes; what was measured is remembered. Draw number k is the same for all shapes.

    Args:
        images: Preprocessed images (N, 3, I, I).
        seed: All draws follow from it.
        known: What `keep` was given by an earlier process.
        keep: Told, as plain data, all that was measured, whenever there is something new.
    """

    def __init__(
        self,
        images: Tensor,
        seed: int = 0,
        known: Iterable[Mapping[str, Any]] = (),
        keep: Callable[[Sequence[Mapping[str, Any]]], None] = lambda known: None,
    ) -> None:
        self.images, self.seed, self.keep = images, seed, keep
        self._measured = {(Specification(**entry["shape"]), entry["draw"]): entry["measured"] for entry in known}

    def __call__(self, spec: Specification, draws: int) -> Worth:
        """The score of a shape: higher is better. The standard error is over the draws, 0 where there is one."""
        values = [
            sum(weight * math.log(self.measured(spec, draw)[name]) for name, weight in WEIGHTS.items())
            for draw in range(draws)
        ]
        error = float(np.std(values, ddof=1)) / math.sqrt(draws) if draws > 1 else 0.0
        return Worth(float(np.mean(values)), error)

    def measured(self, spec: Specification, draw: int) -> Mapping[str, float]:
        """Length, condition and rank of a shape on one draw of its weights."""
        if (spec, draw) not in self._measured:
            self._measured[spec, draw] = self._measure(spec, draw)
            self.keep(
                [{"shape": asdict(spec), "draw": k, "measured": known} for (spec, k), known in self._measured.items()]
            )
        return self._measured[spec, draw]

    def _measure(self, spec: Specification, draw: int) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence((self.seed, draw)).generate_state(1, np.uint64)[0]))
            with torch.device("meta"):
                blank = form_of(spec).build()
            model = keeping_variance(blank.to_empty(device="cpu")).eval()
            directions = circle(spec.image_size, torch.default_generator)
        radius = math.sqrt(directions.shape[0] / 2)  # images of unit variance
        theta = torch.linspace(0, 2 * math.pi, POINTS + 1)[:-1]
        curve = curve_of(map_of(model), directions * radius, theta, (spec.in_chans, spec.image_size, spec.image_size))
        kernel = ntk(model, features_of(model), self.images)
        return {"length": curve.length().item(), "condition": condition(kernel), "rank": effective_rank(kernel)}


def keeping_variance(model: nn.Module) -> nn.Module:
    """`model` with new weights, in place: layers keep the variance of what they get; biases and positions are 0."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "weight" in name:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.constant_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0)
    return model


def map_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """From images to all patch tokens before the final norm, (B, N * D)."""
    assert isinstance(model, VisionTransformer)

    def tokens(images: Tensor) -> Tensor:
        found: Any = model.forward_intermediates(images, indices=1, output_fmt="NLC", intermediates_only=True)
        return found[0].flatten(1)

    return tokens


def effective_rank(kernel: Tensor) -> float:
    """How many directions a kernel (B, B) has once it is centred: the exponential of its spectrum's entropy."""
    centring = torch.eye(len(kernel), dtype=kernel.dtype) - 1 / len(kernel)
    spectrum = torch.linalg.eigvalsh(centring @ kernel @ centring).clamp(min=0)
    shares = spectrum / spectrum.sum()
    return math.exp(-torch.special.xlogy(shares, shares).sum().item())
