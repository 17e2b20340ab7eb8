"""A part alone answers as the whole model does, and a file that is not whole is refused."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from anyvit.deploy.spread.parts import Part
from anyvit.deploy.spread.refusal import Refusal, Status
from anyvit.deploy.spread.tensor_file import KEY
from anyvit.deploy.spread.wire import Kind, Message
from anyvit.errors import BundleError
from tests.deploy.spread.fleet import PREPROCESSING, model, pictures

GROUPS = (1, 3)


def part_of(trunk):
    return Part.of_groups("board-1", model(), GROUPS, trunk=trunk, preprocessing=PREPROCESSING)


@pytest.fixture
def file(tmp_path):
    part_of("boards").save(tmp_path / "part-1.safetensors")
    return tmp_path / "part-1.safetensors"


def question(part, tensor, kind=None):
    return Message(7, kind or (Kind.TOKENS if part.kind == "tokens" else Kind.IMAGES), part.hash, tensor)


@pytest.mark.parametrize("trunk", ["hub", "boards"])
def test_a_part_answers_as_the_whole_model(trunk, tmp_path):
    part_of(trunk).save(tmp_path / "part.safetensors")
    part = Part.open(tmp_path / "part.safetensors")
    pixels = pictures(3)
    images = PREPROCESSING.normalize_batch(pixels)
    tokens = model().tokens(images).unflatten(1, (4, -1))[:, list(GROUPS)].flatten(1, 2)
    answer = part.answer(question(part, tokens if trunk == "hub" else pixels))
    assert (answer.request, answer.kind, answer.weights) == (7, Kind.CLASS_TOKENS, part.hash)
    torch.testing.assert_close(answer.tensor, model().forward_features(images)[:, list(GROUPS)], rtol=0, atol=1e-5)


def test_a_board_that_is_sent_tokens_has_no_trunk():
    assert {name.split(".")[0] for name in part_of("hub").module.state_dict()} == {"cls_token", "pos_embed", "blocks"}
    assert not any(name.startswith(("norm", "head")) for name in part_of("boards").module.state_dict())


def test_the_hash_covers_weights_and_what_they_are_used_for():
    part = part_of("boards")
    assert part.hash == part_of("boards").hash
    other = Part.of_groups("board-2", model(), GROUPS, trunk="boards", preprocessing=PREPROCESSING)
    assert part.hash != other.hash
    with torch.no_grad():
        changed = part_of("boards")
        next(changed.module.parameters()).flatten()[0] += 1e-3
    assert part.hash != changed.hash


def test_what_the_part_is_not_asked_with_is_refused():
    part = part_of("boards")
    for tensor, kind in ((torch.ones(1, 16, 32), Kind.TOKENS), (pictures(1)[:, :, :4], None)):
        with pytest.raises(Refusal, match="this part takes IMAGES") as refused:
            part.answer(question(part, tensor, kind))
        assert refused.value.status is Status.INVALID_ARGUMENT
    with pytest.raises(Refusal, match="and this board holds") as refused:
        part.answer(Message(1, Kind.IMAGES, "0" * 64, pictures(1)))
    assert refused.value.status is Status.FAILED_PRECONDITION


def test_a_file_that_is_replaced_meanwhile_changes_nothing(file):
    part = Part.open(file)
    before = part.answer(question(part, pictures(1))).tensor
    with file.open("r+b") as overwritten:  # as a copy over it does
        overwritten.write(bytes(file.stat().st_size))
    torch.testing.assert_close(part.answer(question(part, pictures(1))).tensor, before, rtol=0, atol=0)


def rewritten(file, change):
    content = file.read_bytes()
    document = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][KEY])
    tensors = safetensors.torch.load(content)
    change(document, tensors)
    safetensors.torch.save_file(tensors, file, {KEY: json.dumps(document)})


CHANGES = {
    "schema": (lambda document, tensors: document.update(schema=2), "newer than this AnyViT reads"),
    "board": (lambda document, tensors: document.update(board="another"), "its hash is not the one"),
    "normalization": (lambda document, tensors: document["preprocessing"].update(mean=[0, 0, 0]), "its hash is not"),
    "kind": (lambda document, tensors: document.update(kind="other"), "is damaged"),
    "arguments": (lambda document, tensors: document["models"][0].update(embed_dim=64), "is damaged"),
    "unknown argument": (lambda document, tensors: document["models"][0].update(size=64), "is damaged"),
    "tensor gone": (lambda document, tensors: tensors.pop("embed.0.bias"), "is damaged"),
    "tensor more": (lambda document, tensors: tensors.update(more=torch.ones(1)), "is damaged"),
    "tensor type": (
        lambda document, tensors: tensors.update({"embed.0.bias": tensors["embed.0.bias"].double()}),
        "not",
    ),
    "tensor value": (lambda document, tensors: tensors["embed.0.bias"].add_(1), "its hash is not the one"),
    "field gone": (lambda document, tensors: document.pop("takes"), "KeyError: 'takes'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_go_together_is_refused(file, name):
    change, words = CHANGES[name]
    rewritten(file, change)
    with pytest.raises(BundleError, match=words):
        Part.open(file)


def test_damaged_and_foreign_files_are_refused(file, tmp_path):
    content = file.read_bytes()
    for wrong in (b"", content[:100], content[:-1], b"no part at all" * 10, b"\xff" * 500):
        file.write_bytes(wrong)
        with pytest.raises(BundleError, match="is damaged"):
            Part.open(file)
    safetensors.torch.save_file({"weight": torch.ones(2)}, file)
    with pytest.raises(BundleError, match="was not written by AnyViT"):
        Part.open(file)
    with pytest.raises(BundleError, match="cannot be read"):
        Part.open(tmp_path / "none.safetensors")
