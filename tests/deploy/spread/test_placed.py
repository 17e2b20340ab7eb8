"""The placed folder: whole or not at all, and never in the place of something else."""

from __future__ import annotations

import json

import pytest
import torch

from anyvit.deploy.spread import placed as module
from anyvit.deploy.spread.hub import open_hub
from anyvit.deploy.spread.parts import Part
from anyvit.deploy.spread.placed import Placed, is_placed, write_placed
from anyvit.errors import BundleError, SettingError
from tests.deploy.spread.fleet import (
    BUNDLE,
    CLASSES,
    GROUPS,
    KNOWN,
    PREPROCESSING,
    logits_of,
    model,
    pictures,
    place,
    plan,
)


@pytest.fixture
def placed(tmp_path):
    return place(tmp_path / "placed", 2, "boards")


def test_it_holds_what_hub_and_boards_need(placed):
    names = {path.name for path in placed.folder.iterdir()}
    assert names == {"placement.json", "hub.safetensors", "part-1.safetensors", "part-2.safetensors"}
    assert is_placed(placed.folder)
    assert (placed.classes, placed.preprocessing, placed.members) == (CLASSES, PREPROCESSING, GROUPS)
    assert [part.members for part in placed.parts] == [(0, 2), (1, 3)]
    assert dict(placed.known) == dict(enumerate(KNOWN))
    assert [Part.open(placed.folder / part.file).hash for part in placed.parts] == [part.hash for part in placed.parts]


@pytest.mark.parametrize("trunk", ["hub", "boards"])
def test_hub_and_parts_make_the_whole_model_again(trunk, tmp_path):
    placed = place(tmp_path / "placed", 2, trunk)
    hub, pixels = open_hub(placed), pictures(3)
    questions, answers = hub.questions(pixels), {}
    for entry in placed.parts:
        part = Part.open(placed.folder / entry.file)
        answers[entry.board] = part._compute(questions[entry.board])
    torch.testing.assert_close(hub.decide(answers), logits_of(pixels), rtol=0, atol=1e-5)
    only = {"board-2": answers["board-2"]}
    torch.testing.assert_close(hub.decide(only), logits_of(pixels, (1, 3)), rtol=0, atol=1e-5)


def test_an_earlier_one_is_replaced_and_something_else_is_not(tmp_path):
    first = place(tmp_path / "placed", 4, "hub")
    second = place(tmp_path / "placed", 2, "boards")
    assert {path.name for path in first.folder.glob("part-*")} == {part.file for part in second.parts}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "holiday.jpg").touch()
    with pytest.raises(SettingError, match=r"holds something else \(holiday.jpg\)"):
        place(tmp_path / "other", 2, "boards")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["holiday.jpg"]


def test_what_fails_half_way_leaves_what_was_there(placed, monkeypatch):
    before = {path.name: path.read_bytes() for path in placed.folder.iterdir()}
    monkeypatch.setattr(module, "write_text", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        place(placed.folder, 4, "hub")
    assert {path.name: path.read_bytes() for path in placed.folder.iterdir()} == before
    assert [path.name for path in placed.folder.parent.iterdir()] == ["placed"]


def test_a_plan_of_another_model_is_refused(tmp_path):
    for deal in ([[0, 1], [2]], [[0, 1], [1, 2, 3]], [[0, 1, 2, 3], [4]]):
        with pytest.raises(SettingError, match="plan this model anew"):
            write_placed(tmp_path / "placed", BUNDLE, model(), plan(deal, "hub", ["a:1", "b:2"]), known=())


CHANGES = {
    "newer": (lambda document: document.update(schema=2), "newer than this AnyViT reads"),
    "no plan": (lambda document: document.pop("plan"), "KeyError: 'plan'"),
    "no shape": (lambda document: document["parts"][0].pop("gives"), "KeyError: 'gives'"),
    "a classless one": (lambda document: document.update(classes=None), "is damaged"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_document_is_refused(placed, name):
    change, words = CHANGES[name]
    document = json.loads((placed.folder / "placement.json").read_text())
    change(document)
    (placed.folder / "placement.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=words):
        Placed.load(placed.folder)


def test_damaged_files_are_refused(placed, tmp_path):
    hub = placed.folder / "hub.safetensors"
    hub.write_bytes(hub.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match="its SHA-256 is not the one that placement.json gives"):
        open_hub(placed)
    hub.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        open_hub(placed)
    (placed.folder / "placement.json").write_text("{")
    with pytest.raises(BundleError, match="is damaged"):
        Placed.load(placed.folder)
    assert not is_placed(tmp_path)


def test_documents_are_json_for_everybody(placed):
    text = (placed.folder / "placement.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
