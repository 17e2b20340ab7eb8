"""Reorder a trained ViT so that its prefixes hold what matters most, before anything is cut (ours).

Without images a unit matters as much as it is expected to add to the linear layers that read it: the variance that
norms and weights give it, times the squared norm of its column there. Of a channel, every reader counts alike.

With images it matters as much as the model's answer would change if the unit vanished, to first order: activation times
gradient of the log-likelihood of an answer, drawn as the model gives them; squared, and averaged over images. Mean
squares of the activations themselves say little: the largest channels may be constants.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from anyvit.errors import ModelError
from anyvit.models.contract import blocks_of, share
from anyvit.models.layers.indexed import Kept, ViT, reordered
from anyvit.models.layers.sliceable import why_not_sliceable

Importance = tuple[Tensor, list[Tensor], list[Tensor]]
"""Of each channel; by block, of each head; by block, of each hidden unit."""


def ordered_by_importance(model: ViT, images: Tensor | None = None) -> ViT:
    """A copy of a trained ViT whose first channels, heads and hidden units are those that matter most.

    At full size it answers as `model` does, within rounding; features without a classifier come in the new order.

    Args:
        model: A plain ViT, or an elastic one. It is left as it is.
        images: A preprocessed batch (B, C, S, S) to measure by, a hundred or so. None: the weights alone decide.

    Raises:
        ModelError: The model cannot be cut to some of its units; the message names the part. Or images are given, and
            it has no classifier to measure by.
    """
    if reason := why_not_sliceable(model):
        raise ModelError(f"{type(model).__name__} cannot be ordered by importance: {reason}")
    channels, heads, hidden = _expected(model) if images is None else _measured(model, images)
    return reordered(model, Kept(_falling(channels), tuple(map(_falling, heads)), tuple(map(_falling, hidden))))


def _falling(importance: Tensor) -> tuple[int, ...]:
    return tuple(importance.argsort(descending=True, stable=True).tolist())


def _classifiers(model: Any) -> list[nn.Linear]:
    return [part for part in (model.head, getattr(model, "head_dist", None)) if isinstance(part, nn.Linear)]


@torch.no_grad()
def _expected(model: VisionTransformer) -> Importance:
    ones = torch.ones_like(model.patch_embed.proj.weight[:, 0, 0, 0])
    last = _variance(model.fc_norm, _variance(model.norm, ones))
    read = [last * _columns(classifier) for classifier in _classifiers(model)]
    heads, hidden = [], []
    for block in blocks_of(model):
        qkv, proj, fc1 = block.attn.qkv, block.attn.proj, block.mlp.fc1
        attended, fed = _variance(block.norm1, ones), _variance(block.norm2, ones)
        read += [attended * _columns(qkv), fed * _columns(fc1)]
        values = _through(qkv.weight.chunk(3)[2], None if qkv.bias is None else qkv.bias.chunk(3)[2], attended)
        by_channel = _variance(block.attn.norm, values) * _columns(proj)
        heads.append(by_channel.unflatten(0, (block.attn.num_heads, -1)).sum(1))
        hidden.append(_variance(block.mlp.norm, _through(fc1.weight, fc1.bias, fed)) * _columns(block.mlp.fc2))
    return torch.stack([amount / amount.sum() for amount in read]).sum(0), heads, hidden


def _columns(linear: nn.Linear) -> Tensor:
    return linear.weight.square().sum(0)


def _variance(norm: Any, before: Tensor) -> Tensor:
    """The mean square of channels after a norm, as its weights say; where there is no norm, what it was before."""
    if getattr(norm, "weight", None) is None:
        return before
    bias = getattr(norm, "bias", None)
    return norm.weight.square() + (0 if bias is None else bias.square())


def _through(weight: Tensor, bias: Tensor | None, variance: Tensor) -> Tensor:
    """The same after a linear layer whose inputs go each its own way."""
    through = weight.square() @ variance
    return through if bias is None else through + bias.square()


@torch.enable_grad()
def _measured(model: VisionTransformer, images: Tensor) -> Importance:
    twin = share(model).eval()
    twin.set_grad_checkpointing(False)
    classifiers, blocks = _classifiers(twin), blocks_of(twin)
    if not classifiers:
        raise ModelError("without a classifier there is no answer to measure by: leave the images out")
    given: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given[layer] = inputs[0].requires_grad_()  # where all is frozen, gradients begin here

    for layer in chain(classifiers, *((b.attn.qkv, b.attn.proj, b.mlp.fc1, b.mlp.fc2) for b in blocks)):
        layer.register_forward_pre_hook(note)
    likelihood = twin(images).float().log_softmax(1)
    drawn = torch.multinomial(likelihood.detach().exp().cpu(), 1, generator=torch.Generator().manual_seed(0))
    slopes = torch.autograd.grad(likelihood.gather(1, drawn.to(likelihood.device)).sum(), list(given.values()))
    changes = {  # by image and unit
        layer: (x * slope).detach().reshape(len(x), -1, x.shape[-1]).sum(1)
        for (layer, x), slope in zip(given.items(), slopes, strict=True)
    }
    readers = [*classifiers, *(block.attn.qkv for block in blocks), *(block.mlp.fc1 for block in blocks)]
    heads = [changes[block.attn.proj].unflatten(1, (block.attn.num_heads, -1)).sum(2) for block in blocks]
    channels = torch.stack([changes[reader] for reader in readers]).sum(0)
    hidden = [changes[block.mlp.fc2] for block in blocks]
    return _mean_square(channels), list(map(_mean_square, heads)), list(map(_mean_square, hidden))


def _mean_square(changes: Tensor) -> Tensor:
    return changes.square().mean(0)
