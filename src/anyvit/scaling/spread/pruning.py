"""Prune a ViT for some of its classes: what those classes' images miss least is removed (ED-ViT, arXiv 2410.11650).

The score of a unit is mean KL(P || Q) over the images: P as the unpruned model answers, Q as the model answers without
the unit, which is really removed, so norms count what remains. Three stages, each scored on what the one before it has
left: channels of the residual stream, then heads, then hidden units of the MLPs.

The cost is one pass of the network a channel, and one from its block on a head or hidden unit. Several variants run at
once, their weights stacked, and what comes before the block is computed once.

Letters: V variants, B images, D channels, C classes
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from anyvit.errors import DataError, ModelError, SettingError
from anyvit.models.contract import blocks_of, share
from anyvit.models.layers.indexed import Kept, Positions, channels_of, checked_indexable, sliced, take
from anyvit.models.layers.sliceable import Stays, cuts
from anyvit.protocols import Event, Progress, silent

_TOKENS = 1 << 13
"""Tokens in one pass: enough to fill the machine, few enough for its memory."""

Variant = Sequence[Stays[Tensor | None]]
"""A model without one of its units: by block, what stays; None is all."""


@dataclass(frozen=True)
class Pruned:
    """A pruned model.

    Attributes:
        model: An ordinary ViT in memory of its own, with the classifier of the model it comes from.
        kept: What is left, as positions in that model.
        channel_scores: (D,), of the channels; empty where nothing was to be removed, as are the others.
        head_scores: By block, of the heads.
        hidden_scores: By block, of the hidden units.
    """

    model: VisionTransformer
    kept: Kept
    channel_scores: Tensor
    head_scores: tuple[Tensor, ...]
    hidden_scores: tuple[Tensor, ...]


def prune(model: nn.Module, images: Tensor, heads: int, *, progress: Progress = silent) -> Pruned:
    """Keep `heads` heads a block, and the same share of the channels and of the hidden units.

    Args:
        model: A plain ViT. It is left as it is.
        images: Preprocessed images (B, 3, S, S) of the classes that the result is for.
        heads: From 1 to the model's number; with all of them nothing is scored and nothing changes.
        progress: Called with the share that is done.

    Raises:
        ModelError: The model cannot be cut, or its answers are not finite.
        SettingError: No such number of heads, or a share of the MLP that rounds to nothing.
        DataError: No images.
    """
    full = share(checked_indexable(model)).eval()
    _check(full, images, heads)
    kept = Kept.everything(full)
    part = Fraction(heads, len(kept.heads[0]))
    if part == 1:
        return Pruned(sliced(full, kept), kept, torch.empty(0), (), ())
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        scorer = _Scorer(full, images.to(next(full.parameters())), progress)
        channels = scorer.channels(full)
        kept = replace(kept, embed=keep_best(channels, int(len(channels) * part)))
        by_head = scorer.heads(sliced(full, kept))
        kept = replace(kept, heads=tuple(keep_best(scores, heads) for scores in by_head))
        by_unit = scorer.hidden(sliced(full, kept))
        kept = replace(kept, hidden=tuple(keep_best(scores, int(len(scores) * part)) for scores in by_unit))
    return Pruned(sliced(full, kept), kept, channels, by_head, by_unit)


def keep_best(scores: Tensor, count: int) -> Positions:
    """The positions of the `count` highest scores, ascending; of equal scores the first stay.

    Raises:
        ModelError: A score is missing or not finite.
    """
    finite = int(torch.isfinite(scores).sum())
    if finite < len(scores) or finite < count:
        raise ModelError(
            f"{count} units are to be kept, and {finite} of {len(scores)} scores are finite: "
            "the model must answer every image with finite numbers"
        )
    return tuple(sorted(scores.argsort(descending=True, stable=True)[:count].tolist()))


def _check(model: VisionTransformer, images: Tensor, heads: int) -> None:
    blocks = blocks_of(model)
    num_heads, head_dim = blocks[0].attn.num_heads, blocks[0].attn.head_dim
    if num_heads * head_dim != model.embed_dim:
        raise ModelError(
            f"{num_heads} heads of {head_dim} channels are not the {model.embed_dim} channels of the model: "
            "it cannot keep the same share of both"
        )
    if not 1 <= heads <= num_heads:
        raise SettingError(f"heads to keep must be from 1 to {num_heads}: got {heads}")
    fewest = min(block.mlp.fc1.out_features for block in blocks)
    if fewest * heads < num_heads:
        raise SettingError(f"{heads} of {num_heads} heads leave none of {fewest} hidden units: keep more heads")
    if not len(images):
        raise DataError("there are no images to score by: a sub-model is pruned by images of its own classes")


class _Scorer:
    """Scores every unit of a stage against the answers of the unpruned model.

    Args:
        model: The unpruned model.
        images: In its precision, on its device.
        progress: Told the share that is done.
    """

    def __init__(self, model: VisionTransformer, images: Tensor, progress: Progress) -> None:
        self.images = images
        tokens = _enter(model, images[:1]).shape[1]
        self.images_at_once = min(len(images), max(1, _TOKENS // tokens))
        self.variants_at_once = max(1, _TOKENS // (self.images_at_once * tokens))
        self.answers = self._by_part(lambda part: _log_probabilities(model(part)), images)
        self.meter = _Meter(model, progress)

    def channels(self, model: VisionTransformer) -> Tensor:
        """Scores (D,) of the channels of the residual stream."""
        self.meter.begin("channels", blocks=len(model.blocks))
        form = sliced(model, replace(Kept.everything(model), embed=tuple(range(1, model.embed_dim))))
        variants: list[Variant] = [
            [Stays(rest, None, None)] * len(model.blocks) for rest in _leave_one_out(model.embed_dim)
        ]
        return self._scores(model, variants, "", form, self.images, lambda logits: logits)

    def heads(self, model: VisionTransformer) -> tuple[Tensor, ...]:
        """By block, scores of the heads."""
        whole, head_dim = Kept.everything(model), blocks_of(model)[0].attn.head_dim
        form = sliced(model, replace(whole, heads=tuple(heads[1:] for heads in whole.heads)))
        left = [
            [Stays(None, channels_of(rest, head_dim), None) for rest in _leave_one_out(len(heads))]
            for heads in whole.heads
        ]
        return self._by_block("heads", model, left, form)

    def hidden(self, model: VisionTransformer) -> tuple[Tensor, ...]:
        """By block, scores of the hidden units."""
        whole = Kept.everything(model)
        form = sliced(model, replace(whole, hidden=tuple(units[1:] for units in whole.hidden)))
        left = [[Stays(None, None, rest) for rest in _leave_one_out(len(units))] for units in whole.hidden]
        return self._by_block("hidden units", model, left, form)

    def _by_block(
        self, stage: str, model: VisionTransformer, left: Sequence[Variant], form: VisionTransformer
    ) -> tuple[Tensor, ...]:
        """By block, scores of what is left of it, on what the blocks before it make of the images."""
        unchanged: Stays[Tensor | None] = Stays(None, None, None)
        x, found = self._by_part(lambda part: _enter(model, part), self.images), []
        for index, block in enumerate(model.blocks):
            after = model.blocks[index + 1 :]
            self.meter.begin(stage, blocks=1 + len(after))
            variants = [[unchanged] * index + [stays] + [unchanged] * len(after) for stays in left[index]]
            path = f"blocks.{index}"
            rest = _Rest(model, after)
            found.append(self._scores(model, variants, path, form.get_submodule(path), x, rest))
            x = self._by_part(block, x)
        return tuple(found)

    def _scores(
        self,
        model: VisionTransformer,
        variants: Sequence[Variant],
        path: str,
        form: nn.Module,
        x: Tensor,
        rest: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Scores (V,) of variants of the module at `path`, which have the sizes of `form`; `x` in, `rest` follows."""
        for module in form.modules():
            if isinstance(module, Attention):
                module.fused_attn = False  # type: ignore[misc]  # vmap has no rule for it on the CPU
        run = torch.vmap(lambda weights, part: functional_call(form, weights, (part,)), in_dims=(0, None))
        scores = []
        for first in range(0, len(variants), self.variants_at_once):
            weights = _stacked(model, variants[first : first + self.variants_at_once], path)
            total: Tensor | float = 0.0
            for part, answers in zip(
                x.split(self.images_at_once), self.answers.split(self.images_at_once), strict=True
            ):
                y_VB = run(weights, part)
                logits_VBC = rest(y_VB.flatten(0, 1)).unflatten(0, y_VB.shape[:2])
                total = total + _divergences(answers, logits_VBC).sum(1)
            scores.append(torch.as_tensor(total) / len(x))
            self.meter.scored(len(scores[-1]))
        return torch.cat(scores).cpu()

    def _by_part(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([run(part) for part in x.split(self.images_at_once)])


class _Rest(nn.Module):
    """From the tokens behind a block to the logits."""

    def __init__(self, model: VisionTransformer, blocks: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_head(self.model.norm(self.blocks(x)))


class _Meter:
    """How far the scoring is. Its unit is one block run for one variant."""

    def __init__(self, model: VisionTransformer, progress: Progress) -> None:
        blocks = blocks_of(model)
        self._total = len(blocks) * model.embed_dim
        for index, block in enumerate(blocks):
            self._total += (len(blocks) - index) * (block.attn.num_heads + block.mlp.fc1.out_features)
        self._progress = progress
        self._done = 0
        self._begun = time.monotonic()

    def begin(self, stage: str, *, blocks: int) -> None:
        """From here on a variant runs so many blocks."""
        self._stage, self._blocks = stage, blocks

    def scored(self, variants: int) -> None:
        self._done += variants * self._blocks
        seconds_left = (time.monotonic() - self._begun) * (self._total / self._done - 1)
        self._progress(Event("prune", self._stage, done=self._done / self._total, seconds_left=seconds_left))


def _enter(model: VisionTransformer, images: Tensor) -> Tensor:
    """The tokens before the first block."""
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))


def _stacked(model: VisionTransformer, variants: Sequence[Variant], path: str) -> dict[str, Tensor]:
    """The weights (V, …) of variants of the module at `path`, by their names in it."""
    before = f"{path}." if path else ""
    found = [cuts(model, blocks) for blocks in variants]
    return {
        name.removeprefix(before): torch.stack([take(cut[name], parameter) for cut in found])
        for name, parameter in model.named_parameters()
        if name.startswith(before)
    }


def _leave_one_out(count: int) -> list[Tensor]:
    positions = torch.arange(count)
    return [positions[positions != left_out] for left_out in range(count)]


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)  # models almost alike differ in digits that float32 does not have


def _divergences(answers: Tensor, logits: Tensor) -> Tensor:
    """KL(P || Q) (V, B), in nats, of log-probabilities (B, C) and logits (V, B, C)."""
    others = _log_probabilities(logits)
    return F.kl_div(others, answers.expand_as(others), reduction="none", log_target=True).sum(-1)
