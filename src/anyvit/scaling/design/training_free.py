"""What a network promises before it is trained: two measurements of random weights (As-ViT, arXiv 2202.11921, 3.1).

Length distortion: how much longer a circle of images gets on its way through the network without norms; longer is more
expressive. Condition of the neural tangent kernel: how unevenly the network learns from different images; lower is
easier to train. Both look at the feature: the mean over patches before the final norm. They take any model that has
timm's `forward_intermediates`.

Compare only what was measured at the same image size and with as many points, on as many images.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from anyvit.errors import SettingError
from anyvit.models.contract import share

Features = Callable[[Tensor], Tensor]
"""From images (B, 3, I, I) to the features (B, D)."""

NORMS = ("LayerNorm", "RmsNorm", "RMSNorm", "SimpleNorm", "GroupNorm", "BatchNorm", "InstanceNorm")
"""How the names of norm classes contain it, PyTorch's and timm's alike."""

GRADIENTS_AT_ONCE = 2**28
"""Elements that are kept at a time, over all images: 1 GiB in float32."""

PIXELS_AT_ONCE = 150_000
"""Of images that are differentiated together: 16 of 96 pixels a side; more gain little and take their memory."""


def features_of(model: nn.Module) -> Features:
    """The features of a model: its last map before the final norm, averaged over the patches.

    Raises:
        SettingError: It does not tell its maps.
    """
    forward = getattr(model, "forward_intermediates", None)
    if forward is None:
        raise SettingError(f"a {type(model).__name__} has no forward_intermediates: it cannot be measured untrained")

    def features(images: Tensor) -> Tensor:
        (maps,) = forward(images, indices=1, norm=False, output_fmt="NCHW", intermediates_only=True)
        return maps.mean(dim=(2, 3))

    return features


def without_norms(model: nn.Module) -> nn.Module:
    """A copy over the same weights in which every norm passes on what it gets."""
    bare = share(model)
    for name, module in [*bare.named_modules()]:
        if any(kind in type(module).__name__ for kind in NORMS):
            bare.set_submodule(name, nn.Identity())
    return bare


@dataclass(frozen=True, slots=True)
class Curve:
    """What becomes of a circle of images: the features (n, D) of its points, and how they change along the circle.

    `acceleration` is None where it was not asked for.
    """

    features: Tensor
    velocity: Tensor
    acceleration: Tensor | None = None

    @property
    def speed(self) -> Tensor:
        """(n,)"""
        return self.velocity.norm(dim=1)

    def length(self) -> Tensor:
        """The sum of the speeds: no step of the angle weighs it, and both ends of the circle count."""
        return self.speed.sum()

    def curvature(self) -> Tensor:
        """The sum over the points of how sharply the curve bends there."""
        v, a = self._moving()
        vv, aa, va = (v * v).sum(dim=1), (a * a).sum(dim=1), (v * a).sum(dim=1)
        return (vv.pow(-1.5) * (vv * aa - va * va).sqrt()).sum()

    def gauss_length(self, *, strict_reference: bool = False, chunk: int = 6) -> Tensor:
        """The sum over the points of how fast the direction of the curve turns.

        Args:
            strict_reference: As the reference adds it up: it takes the speed for constant, and multiplies, within each
                chunk of points, the sum of the accelerations with that of the inverse speeds.
            chunk: Points of a chunk there.
        """
        v, a = self._moving()
        speed = v.norm(dim=1)
        if strict_reference:
            parts = zip(a.norm(dim=1).split(chunk), speed.split(chunk), strict=True)
            return torch.stack([turning.sum() * (1 / speeds).sum() for turning, speeds in parts]).sum()
        along = v / speed[:, None]
        across = a - along * (along * a).sum(dim=1, keepdim=True)
        return (across.norm(dim=1) / speed).sum()

    def _moving(self) -> tuple[Tensor, Tensor]:
        if self.acceleration is None:
            raise SettingError("this curve was followed without its second derivatives: ask for them with second=True")
        return self.velocity, self.acceleration


def curve_of(
    features: Features, basis: Tensor, theta: Tensor, shape: Sequence[int], *, second: bool = False, chunk: int = 2
) -> Curve:
    """Follow a circle of images through a network, by forward-mode derivatives.

    Args:
        features: Of the network without norms; of each image for itself.
        basis: Two directions in the space of images (3 * I * I, 2): the circle is basis @ [cos theta, sin theta].
        theta: Angles (n,).
        shape: Of an image, (3, I, I).
        second: Take the second derivatives too; they cost about as much again.
        chunk: Points at a time: a matter of memory.
    """

    def along(angles: Tensor) -> Tensor:
        points = torch.stack([angles.cos(), angles.sin()], dim=1) @ basis.T
        return features(points.unflatten(1, tuple(shape)))

    def moving(angles: Tensor) -> Any:  # a point's feature follows from its own angle alone
        return jvp(along, (angles,), (torch.ones_like(angles),))

    def bending(angles: Tensor) -> tuple[Tensor, ...]:
        moved, bent = jvp(moving, (angles,), (torch.ones_like(angles),))[:2]
        return (*moved, bent[1])

    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # fused attention has no forward-mode derivative
        parts = [(bending if second else moving)(angles) for angles in theta.split(chunk)]
    return Curve(*(torch.cat(part) for part in zip(*parts, strict=True)))


def length_distortion(
    features: Features, basis: Tensor, theta: Tensor, shape: Sequence[int], *, chunk: int = 2
) -> Tensor:
    """The length of a circle of images behind the network, a scalar: higher is better. See `curve_of`."""
    return curve_of(features, basis, theta, shape, chunk=chunk).length()


def circle(image_size: int, generator: torch.Generator, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Two random orthonormal directions in the space of images, (3 * I * I, 2)."""
    random = torch.randn(3 * image_size**2, 2, generator=generator, dtype=torch.float64)
    return torch.linalg.svd(random, full_matrices=False).U.to(dtype)


def ntk(model: nn.Module, features: Features, images: Tensor) -> Tensor:
    """The neural tangent kernel of the summed feature over some images, (B, B) in float64.

    Its entries are the products of two images' gradients by all parameters whose names contain `weight` and that the
    feature depends on: no biases, no final norm, no classifier. The gradients are of the model's own precision.

    Args:
        model: Whose parameters; it is left as it is.
        features: Of this very model.
        images: (B, 3, I, I).

    Raises:
        SettingError: There are no images, or the feature depends on no weight.
    """
    if not len(images):
        raise SettingError("a tangent kernel needs images, two or more: got an empty batch")
    if len(images) == 1:
        warnings.warn("the condition of a tangent kernel of one image is always 1: give two or more", stacklevel=2)
    summed = _Summed(model, features)
    weights = {name: p for name, p in summed.named_parameters() if "weight" in name and p.requires_grad}
    at_once = max(1, PIXELS_AT_ONCE // images[0, 0].numel())
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64)

    def answer(group: dict[str, Tensor], image: Tensor) -> Tensor:
        found: Tensor = functional_call(summed, group, (image[None],))
        return found

    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # fused attention is not vectorized over images
        for group in _groups(weights, GRADIENTS_AT_ONCE // len(images)):
            for gradient in vmap(grad(answer), (None, 0), chunk_size=at_once)(group, images).values():
                rows = gradient.flatten(1).double()
                kernel += rows @ rows.T
    if not kernel.any():
        raise SettingError(f"the feature of {type(model).__name__} depends on no parameter that is called a weight")
    return kernel


class _Summed(nn.Module):
    """A model and the sum of its features, so that the parameters can be exchanged."""

    def __init__(self, model: nn.Module, features: Features) -> None:
        super().__init__()
        self.model = model
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).sum()


def _groups(weights: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """Neighbours whose elements together stay below the limit, or one that is larger."""
    group: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if group and sum(each.numel() for each in group.values()) + weight.numel() > limit:
            yield group
            group = {}
        group[name] = weight
    if group:
        yield group


def condition(kernel: Tensor) -> float:
    """The largest eigenvalue of a symmetric matrix over the smallest, from 1; inf for a singular or a broken one."""
    if not kernel.isfinite().all():
        return math.inf
    eigenvalues = torch.linalg.eigvalsh(kernel)
    smallest, largest = eigenvalues[0].item(), eigenvalues[-1].item()
    return largest / smallest if smallest > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a network promises, averaged over draws of its weights.

    Args:
        length: Length distortion: higher is better. 0, the worst, where a draw's was not finite.
        condition: Of the tangent kernel: lower is better. inf, the worst, where a draw's kernel was singular or not
            finite; None where there were no images.
    """

    length: float
    condition: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """JSON knows no inf: None stands for it, and what was not measured is left out."""
        values = {"length": self.length, "condition": self.condition}
        return {k: v if math.isfinite(v) else None for k, v in values.items() if v is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, float | None]) -> Measurement:
        return cls(**{name: math.inf if value is None else value for name, value in data.items()})


def measure(
    build: Callable[[], nn.Module],
    image_size: int,
    images: Tensor | None = None,
    *,
    points: int = 10,
    repeats: int = 5,
    seed: int = 0,
) -> Measurement:
    """Measure a network on several draws of its weights, each with a circle of its own.

    Both measurements see the same draw: the norms are left out of a copy that shares its weights. (The reference
    draws the weights anew in between.) With the same seed all networks meet the same circles. PyTorch's generator is
    left as it was.

    Args:
        build: Makes the network with new weights, drawn from PyTorch's generator.
        image_size: I.
        images: Preprocessed ones (B, 3, I, I) for the tangent kernel, the same for each draw. None: the length only.
        points: Of the circle, both ends counted.
        repeats: Draws.
        seed: All draws follow from it.

    Raises:
        SettingError: The network cannot be measured, or there are no images.
    """
    theta = torch.linspace(0, 2 * math.pi, points)
    lengths, conditions = [], []
    for repeat in range(repeats):
        weights, directions = np.random.SeedSequence((seed, repeat)).generate_state(2, np.uint64).tolist()
        basis = circle(image_size, torch.Generator().manual_seed(directions))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights)
            model = build().eval()
        bare = features_of(without_norms(model))
        lengths.append(length_distortion(bare, basis, theta, (3, image_size, image_size)).item())
        if images is not None:
            conditions.append(condition(ntk(model, features_of(model), images)))
    length = sum(lengths) / repeats
    return Measurement(length if math.isfinite(length) else 0.0, sum(conditions) / repeats if conditions else None)
