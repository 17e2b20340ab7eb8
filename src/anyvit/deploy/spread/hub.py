"""What the hub computes itself: what each board is asked with, and what their answers come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.spread.modules import empty_hsvit, fill, hub_side
from anyvit.deploy.spread.placed import HUB, REMEDY, Placed, PlacedPart
from anyvit.deploy.spread.tensor_file import refuse_damaged
from anyvit.models.hsvit import HSViT
from anyvit.scaling.spread.fusion import Fusion


class Hub(Protocol):
    """The hub's own part of a model."""

    def questions(self, pixels: Tensor) -> Mapping[str, Tensor]:
        """What each board is asked with, by its name, for pictures (B, 3, S, S) in uint8."""

    def decide(self, answers: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, classes) from the answers of some boards, at least one, by their names."""


class GroupsHub:
    """Of an HSViT: the vote, and where the trunk is its own, the tokens too."""

    def __init__(self, model: HSViT, trunk: str, preprocessing: Preprocessing, parts: Sequence[PlacedPart]) -> None:
        self._model = model
        self._trunk = trunk
        self._preprocessing = preprocessing
        self._parts = parts

    @torch.inference_mode()
    def questions(self, pixels: Tensor) -> Mapping[str, Tensor]:
        if self._trunk == "boards":
            return {part.board: pixels for part in self._parts}
        tokens = self._model.tokens(self._preprocessing.normalize_batch(pixels))
        tokens_BGTD = tokens.unflatten(1, (len(self._model.groups), -1))
        places = {group: place for place, group in enumerate(self._model.groups)}
        return {
            part.board: tokens_BGTD[:, [places[group] for group in part.members]].flatten(1, 2) for part in self._parts
        }

    @torch.inference_mode()
    def decide(self, answers: Mapping[str, Tensor]) -> Tensor:
        in_order = [answers[part.board] for part in self._parts if part.board in answers]
        return self._model.forward_head(torch.cat(in_order, dim=1))


class ClassesHub:
    """Of a ViT split by classes: the head that fuses features, which knows what to do without some."""

    def __init__(self, fusion: Fusion, parts: Sequence[PlacedPart]) -> None:
        self._fusion = fusion
        self._parts = parts

    def questions(self, pixels: Tensor) -> Mapping[str, Tensor]:
        return {part.board: pixels for part in self._parts}

    @torch.inference_mode()
    def decide(self, answers: Mapping[str, Tensor]) -> Tensor:
        widths = self._fusion.widths
        features: list[Tensor | None] = [None] * len(widths)
        for part in self._parts:
            if part.board in answers:
                own = answers[part.board].split([widths[index] for index in part.members], dim=1)
                for index, tensor in zip(part.members, own, strict=True):
                    features[index] = tensor
        return self._fusion(features)


def open_hub(placed: Placed) -> Hub:
    """The hub's part of a placed folder.

    Raises:
        BundleError: It is damaged.
    """
    document, tensors = placed.hub_tensors()
    with refuse_damaged(placed.folder / HUB, REMEDY):
        if document["kind"] == "groups":
            model = hub_side(document["trunk"], empty_hsvit(document["arguments"]))
            fill(model, tensors)
            return GroupsHub(model, document["trunk"], placed.preprocessing, placed.parts)
        with torch.device("meta"):
            fusion = Fusion(document["widths"], document["num_classes"])
        fill(fusion, tensors)
        return ClassesHub(fusion, placed.parts)
