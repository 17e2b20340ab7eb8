"""A ViT split by classes: its sub-models on boards, features fused on the hub, some of them missing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from anyvit.deploy.spread.hub import open_hub
from anyvit.deploy.spread.parts import Part
from anyvit.deploy.spread.placed import write_placed_classes
from anyvit.deploy.spread.wire import Kind, Message
from anyvit.errors import SettingError
from anyvit.models.layers.indexed import Kept
from anyvit.scaling.candidate import Step
from anyvit.scaling.form import Form
from anyvit.scaling.spread.boards import Board
from anyvit.scaling.spread.class_split import ClassSplit
from anyvit.scaling.spread.fusion import Fusion
from anyvit.scaling.spread.plan import Plan, Share
from anyvit.scaling.spread.submodel import SubModel, empty_submodel
from anyvit.scaling.spread.vote import Missing
from tests.deploy.spread.fleet import CLASSES, PREPROCESSING, Fleet, coordinator, pictures

SHAPE = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 10}
PLAIN = Form("vit_tiny_patch16_224", SHAPE)
ELASTIC = Form("vit_tiny_patch16_224", SHAPE, (Step("heads"),))
HEADS = (2, 2, 1)
DEAL = ((0, 2), (1,))
"""Which sub-models each board holds."""


def split():
    torch.manual_seed(0)
    model = PLAIN.build().eval()
    submodels = []
    for index, heads in enumerate(HEADS):
        kept = Kept(tuple(range(8 * heads)), (tuple(range(heads)),) * 2, (tuple(range(32 * heads)),) * 2)
        classes = tuple(range(index, 10, 3))
        submodels.append(SubModel(empty_submodel(model, kept, len(classes) + 1).eval(), classes, kept, True, 3, 0.9))
    fusion = Fusion([8 * heads for heads in HEADS], 10).eval()
    return ClassSplit(tuple(submodels), fusion, tuple(Missing(m, 0.9 - 0.2 * m, 0.8 - 0.2 * m, 3) for m in range(3)))


def plan(addresses, deal=DEAL):
    shares = [
        Share(Board(f"board-{place}", address), own, 1000, 192, 32 * sum(HEADS[i] for i in own), 0.001, 0.0, own)
        for place, (address, own) in enumerate(zip(addresses, deal, strict=True), start=1)
    ]
    return Plan.of("classes", "boards", shares, 0.001)


def bundle(form=PLAIN):
    return SimpleNamespace(classes=CLASSES, preprocessing=PREPROCESSING, document={"model": form.to_json()})


@pytest.mark.parametrize("form", [PLAIN, ELASTIC], ids=["plain", "elastic"])
def test_parts_and_head_answer_as_the_split_does(form, tmp_path):
    whole, pixels = split(), pictures(3)
    placed = write_placed_classes(tmp_path / "placed", bundle(form), whole, plan(["a:1", "b:2"]))
    assert [part.members for part in placed.parts] == list(DEAL)
    hub, answers = open_hub(placed), {}
    for entry in placed.parts:
        part = Part.open(placed.folder / entry.file)
        assert not any("head" in name for name in part.module.state_dict())
        message = Message(1, Kind.IMAGES, part.hash, hub.questions(pixels)[entry.board])
        answers[entry.board] = part.answer(message).tensor
    images = PREPROCESSING.normalize_batch(pixels)
    torch.testing.assert_close(hub.decide(answers).softmax(1), whole(images), rtol=0, atol=1e-5)
    for entry in placed.parts:
        absent = [index for other in placed.parts if other is not entry for index in other.members]
        alone = hub.decide({entry.board: answers[entry.board]}).softmax(1)
        torch.testing.assert_close(alone, whole(images, absent), rtol=0, atol=1e-5)


def test_over_grpc_with_a_board_missing(tmp_path):
    pytest.importorskip("grpc", reason="needs the extra spread")

    class Split(Fleet):
        def place(self, folder, boards, trunk):
            return write_placed_classes(folder, bundle(), split(), plan(self.addresses))

    running, pixels = Split(tmp_path / "placed", 2), pictures(2)
    images = PREPROCESSING.normalize_batch(pixels)
    try:
        with coordinator(running) as hub:
            answer = hub.ask(pixels).answer()
            torch.testing.assert_close(answer.logits.softmax(1), split()(images), rtol=0, atol=1e-5)
            planned = {share.board.name: (2 * share.bytes_in, 2 * share.bytes_out) for share in hub.placed.plan.shares}
            assert (answer.voted, answer.of, answer.payload) == (3, 3, planned)
            running.stop(1)
            answer = hub.ask(pixels).answer()
            torch.testing.assert_close(answer.logits.softmax(1), split()(images, DEAL[0]), rtol=0, atol=1e-5)
            assert (answer.voted, answer.known.missing, set(answer.missing)) == (1, 2, {"board-1"})
    finally:
        running.close()


def test_a_sub_model_without_a_board_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"the plan places \[0, 1\] and the model has \[0, 1, 2\]"):
        write_placed_classes(tmp_path / "placed", bundle(), split(), plan(["a:1", "b:2"], ((0,), (1,))))
