"""A part: what one board holds of a model, as one file that it can be run from without the others.

`part-2.safetensors` is tensors, and a JSON document in its metadata: what rebuilds the model around them, for which
board, and what it is asked with. The hash covers tensors and document, so that hub and board agree on all that counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anyvit.data.preprocessing import Preprocessing
from anyvit.deploy.spread.modules import board_side, empty_board_side, fill
from anyvit.deploy.spread.refusal import Refusal, Status
from anyvit.deploy.spread.tensor_file import hash_of, read_tensors, refuse_damaged, write_tensors
from anyvit.deploy.spread.wire import Kind, Message
from anyvit.errors import BundleError
from anyvit.models.hsvit import HSViT
from anyvit.scaling.form import Form
from anyvit.scaling.spread.plan import ranges

if TYPE_CHECKING:
    from anyvit.scaling.spread.submodel import SubModel

SCHEMA = 1
"""The version of a part's document that this AnyViT writes, and the newest that it reads."""

REMEDY = "Copy it again from the folder that `anyvit spread` has written."

QUESTIONS = {"image": Kind.IMAGES, "tokens": Kind.TOKENS, "features": Kind.IMAGES}
ANSWERS = {"image": Kind.CLASS_TOKENS, "tokens": Kind.CLASS_TOKENS, "features": Kind.FEATURES}


@dataclass(frozen=True, eq=False)
class Part:
    """What one board holds.

    Attributes:
        board: The name of the board.
        kind: "image" (pictures in, class tokens out), "tokens" (tokens in, class tokens out) or "features" (pictures
            in, features of sub-models out).
        members: The groups, or sub-models, that it holds, in the order of its answer.
        takes: The shape of an image's question: (3, S, S) or (g * T, D).
        gives: The shape of an image's answer: (g, D) or (D,).
        models: What rebuilds each model in it, without its weights.
        preprocessing: How pictures are normalized; None where it is asked with tokens.
        module: The model with its weights, in evaluation mode.
    """

    board: str
    kind: str
    members: tuple[int, ...]
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    models: tuple[Mapping[str, Any], ...]
    preprocessing: Preprocessing | None
    module: nn.Module

    @classmethod
    def of_groups(
        cls, board: str, model: HSViT, groups: Sequence[int], *, trunk: str, preprocessing: Preprocessing
    ) -> Part:
        """The part of an HSViT that holds `groups`; where the trunk is on the hub, only their attention."""
        own = model.part(groups).requires_grad_(False).eval()
        kind = "tokens" if trunk == "hub" else "image"
        return cls(
            board,
            kind,
            members=tuple(groups),
            takes=_tokens(own) if kind == "tokens" else _picture(preprocessing),
            gives=(len(groups), own.embed_dim),
            models=(own.arguments,),
            preprocessing=None if kind == "tokens" else preprocessing,
            module=board_side(kind, own),
        )

    @classmethod
    def of_submodels(
        cls, board: str, form: Form, submodels: Mapping[int, SubModel], *, preprocessing: Preprocessing
    ) -> Part:
        """The part that holds these sub-models of a split by classes, by their places in it; classifiers stay behind.

        Args:
            board: The name of the board.
            form: Of the model that was split.
            submodels: By index.
            preprocessing: How pictures are normalized.
        """
        models = tuple({"form": form.to_json(), "kept": submodel.kept.to_json()} for submodel in submodels.values())
        tensors = {
            f"{place}.{name}": tensor.detach().clone()
            for place, submodel in enumerate(submodels.values())
            for name, tensor in submodel.model.state_dict().items()
            if not name.startswith("head.")
        }
        return cls(
            board,
            "features",
            members=tuple(submodels),
            takes=_picture(preprocessing),
            gives=(sum(submodel.model.num_features for submodel in submodels.values()),),
            models=models,
            preprocessing=preprocessing,
            module=fill(empty_board_side("features", models), tensors),
        )

    @classmethod
    def open(cls, path: Path) -> Part:
        """Read a part.

        Raises:
            BundleError: It is missing, damaged, of a newer AnyViT, or no part at all.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}). {REMEDY}") from error
        return cls.from_bytes(content, path)

    @classmethod
    def from_bytes(cls, content: bytes, path: Path) -> Part:
        """Read a part from the content of its file; `path` is what errors call it."""
        document, tensors = read_tensors(content, path, SCHEMA, REMEDY)
        with refuse_damaged(path, REMEDY):
            rule = document["preprocessing"]
            part = cls(
                document["board"],
                document["kind"],
                tuple(document["members"]),
                tuple(document["takes"]),
                tuple(document["gives"]),
                tuple(document["models"]),
                None if rule is None else Preprocessing.from_json(rule),
                fill(empty_board_side(document["kind"], document["models"]), tensors),
            )
            intact = part.hash == document["hash"]
        if not intact:
            raise BundleError(f"{path} is damaged: its hash is not the one that it gives. {REMEDY}")
        return part

    def save(self, path: Path) -> None:
        """Write the part, whole or not at all."""
        write_tensors(path, self.module.state_dict(), {"schema": SCHEMA, **self._document(), "hash": self.hash})

    @property
    def described(self) -> str:
        """What it holds, in a few words."""
        what = "sub-models" if self.kind == "features" else "groups"
        return f"{what} {ranges(self.members)}, asked with {QUESTIONS[self.kind].name.lower()}"

    @cached_property
    def hash(self) -> str:
        """Of tensors and document, 64 hexadecimal digits."""
        return hash_of(self._document(), self.module.state_dict())

    @torch.inference_mode()
    def answer(self, question: Message) -> Message:
        """Class tokens (B, g, D), or features (B, D).

        Raises:
            Refusal: INVALID_ARGUMENT, it is not what this part is asked with; FAILED_PRECONDITION, it is meant for
                other weights.
        """
        self._see_that_meant(question)
        answer = self._compute(question.tensor)
        return Message(question.request, ANSWERS[self.kind], self.hash, answer)

    def _compute(self, tensor: Tensor) -> Tensor:
        if self.preprocessing is None:
            return self.module(tensor)
        images = self.preprocessing.normalize_batch(tensor)
        if isinstance(self.module, HSViT):
            return self.module.forward_features(images)
        return torch.cat([model(images) for model in self.module.children()], dim=1)

    def _see_that_meant(self, question: Message) -> None:
        if question.weights != self.hash:
            raise Refusal(
                Status.FAILED_PRECONDITION,
                f"asked for weights {question.weights[:12]}, and this board holds {self.hash[:12]}",
            )
        wanted, given = QUESTIONS[self.kind], tuple(question.tensor.shape[1:])
        if (question.kind, given) != (wanted, self.takes):
            raise Refusal(
                Status.INVALID_ARGUMENT,
                f"asked with {question.kind.name} {given} an image: this part takes {wanted.name} {self.takes}",
            )

    def _document(self) -> dict[str, Any]:
        rule = self.preprocessing
        return {
            "board": self.board,
            "kind": self.kind,
            "members": self.members,
            "takes": self.takes,
            "gives": self.gives,
            "models": self.models,
            "preprocessing": None if rule is None else rule.to_json(),
        }


def _tokens(model: HSViT) -> tuple[int, ...]:
    return len(model.groups) * model.tokens_per_group, model.embed_dim


def _picture(preprocessing: Preprocessing) -> tuple[int, ...]:
    return 3, preprocessing.image_size, preprocessing.image_size
