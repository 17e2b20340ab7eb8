"""Tuned candidates in a bundle: their weights are written beside what their backend keeps, checked, and used."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from anyvit.deploy.bundle import DOCUMENT, TUNED, Bundle, write_bundle
from anyvit.deploy.export import export_candidate
from anyvit.deploy.formats import FORMATS
from anyvit.deploy.promise import measure_here
from anyvit.errors import BundleError
from anyvit.scaling.candidate import Candidate, Result, Step
from anyvit.scaling.workshop import Workshop, reshape
from tests.deploy.tiny import RESULTS, digits, document, trained, training_images, write_tiny

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
HEADS, PRUNED = Step("heads", {"heads": 2}), Step("prune", {"units": 0.35})
CANDIDATES = {
    "views": Candidate((HEADS,), Step("torch"), tuned=True),
    "pruned": Candidate((HEADS, PRUNED), Step("torch"), tuned=True),
    "zeros": Candidate((Step("prune", {"zeros_not_faster": 0.5}),), Step("torch"), tuned=True),
    "onnx": Candidate((HEADS,), Step("onnxruntime"), tuned=True),
}


def weights_of(candidate):
    """As if it was tuned: what is not zero is a little larger."""
    return {name: tensor * 1.25 for name, tensor in reshape(trained(), candidate).state_dict().items()}


def write(folder, candidates, **more):
    content = document()
    costs = RESULTS[0].costs
    content["candidates"] += [Result(candidate, costs, 0.9).to_json() for candidate in candidates]
    tuned = {candidate.id: weights_of(candidate) for candidate in candidates}
    return write_bundle(
        folder, model=trained(), document=content, training_images=training_images(), tuned=tuned, **more
    )


def expected(candidate):
    return Workshop(trained(), IMAGES, tuned={candidate.id: weights_of(candidate)}).runner(candidate)(IMAGES)


@pytest.fixture(scope="module")
def tuned_bundle(tmp_path_factory):
    """Tests read it and do not change it."""
    return write(tmp_path_factory.mktemp("tuned"), [CANDIDATES[name] for name in ("views", "pruned", "zeros")])


@pytest.mark.parametrize("name", ["views", "pruned", "zeros"])
def test_a_tuned_candidate_answers_with_its_own_weights(tuned_bundle, name):
    bundle, candidate = Bundle.load(tuned_bundle.folder), CANDIDATES[name]
    answer = bundle.runner(bundle.result(candidate.id))(IMAGES)
    assert torch.equal(answer, expected(candidate))
    assert not torch.allclose(answer, reshape(trained(), candidate).eval()(IMAGES).softmax(1), atol=1e-3)
    (file,) = bundle.folder.glob(f"candidates/{candidate.id}/*/{TUNED}")
    torch.testing.assert_close(safetensors.torch.load_file(file), weights_of(candidate), rtol=0, atol=0)


def test_the_others_are_as_without(tuned_bundle):
    bundle = Bundle.load(tuned_bundle.folder)
    for result in RESULTS:
        runner = Workshop(trained(), IMAGES).runner(result.candidate)
        assert torch.equal(bundle.runner(result)(IMAGES), runner(IMAGES))
    torch.testing.assert_close(bundle.model().state_dict(), trained().state_dict(), rtol=0, atol=0)
    assert set(bundle.document["artefacts"]) == {CANDIDATES[name].id for name in ("views", "pruned", "zeros")}


@pytest.mark.slow
def test_export_and_measurement_take_the_tuned_weights(tuned_bundle, tmp_path):
    bundle, candidate = tuned_bundle, CANDIDATES["views"]
    result = bundle.result(candidate.id)
    format = next(format for format in FORMATS if format.name == "torch")
    export = export_candidate(bundle, result, format, tmp_path / "model.pt2", digits().splits["test"])
    answer = torch.export.load(export.path).module()(IMAGES)
    torch.testing.assert_close(answer, expected(candidate), rtol=1e-4, atol=1e-5)
    measured = measure_here({"bundle": str(bundle.folder), "id": candidate.id, "costs": ["latency"]})
    assert measured["latency"] > 0


class Keeper:
    """A backend that keeps the bias of the classifier in a file."""

    def prepare(self, model, setting, example, *, images=None):
        return "prepared", model.head.bias.detach()

    def save(self, runner, folder):
        safetensors.torch.save_file({"bias": runner[1].clone()}, folder / "kept.safetensors")

    def load(self, model, setting, folder):
        kept = safetensors.torch.load_file(folder / "kept.safetensors")["bias"]
        assert torch.equal(kept, model.head.bias)
        return "loaded", kept


def test_what_the_backend_keeps_lies_beside_the_weights(tmp_path, monkeypatch):
    for room in ("deploy.bundle", "scaling.workshop"):
        monkeypatch.setattr(f"anyvit.{room}.backend_named", lambda name: Keeper())
    candidate = Candidate((HEADS,), Step("keeper"), tuned=True)
    weights = weights_of(candidate)
    runner = Workshop(trained(), IMAGES, tuned={candidate.id: weights}).runner(candidate)
    bundle = write(tmp_path, [candidate], runners={candidate.id: runner})
    assert sorted(bundle.document["artefacts"][candidate.id]["files"]) == ["kept.safetensors", TUNED]
    how, bias = bundle.runner(bundle.result(candidate.id))
    assert (how, torch.equal(bias, weights["head.bias"])) == ("loaded", True)
    without = write(tmp_path, [candidate])  # where nothing is kept, it is prepared anew
    how, bias = without.runner(without.result(candidate.id))
    assert (how, torch.equal(bias, weights["head.bias"])) == ("prepared", True)


@pytest.mark.slow
def test_a_graph_is_that_of_the_tuned_weights(tmp_path):
    candidate = CANDIDATES["onnx"]
    workshop = Workshop(trained(), IMAGES, tuned={candidate.id: weights_of(candidate)})
    bundle = write(tmp_path, [candidate], runners={candidate.id: workshop.runner(candidate)})
    assert len(bundle.document["artefacts"][candidate.id]["files"]) == 2
    answer = bundle.runner(bundle.result(candidate.id))(IMAGES)
    torch.testing.assert_close(answer, expected(candidate), rtol=1e-4, atol=1e-5)


def test_rewriting_keeps_them_and_another_bundle_removes_them(tmp_path):
    bundle = write(tmp_path, [CANDIDATES["views"]])
    again = bundle.rewrite({**bundle.document, "chosen": CANDIDATES["views"].id})
    assert torch.equal(again.runner()(IMAGES), expected(CANDIDATES["views"]))
    write_tiny(tmp_path)
    assert not (tmp_path / "candidates").exists()


def test_a_tuned_candidate_without_weights_is_not_written(tmp_path):
    content = document()
    content["candidates"].append(Result(CANDIDATES["views"], RESULTS[0].costs, 0.9).to_json())
    with pytest.raises(AssertionError):
        write_bundle(tmp_path, model=trained(), document=content, training_images=[])


def test_damaged_and_missing_weights_are_named(tmp_path):
    candidate = CANDIDATES["views"]
    bundle = write(tmp_path, [candidate])
    (file,) = tmp_path.glob(f"candidates/{candidate.id}/*/{TUNED}")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"tuned\.safetensors is damaged: its SHA-256 is not the one"):
        bundle.runner(bundle.result(candidate.id))
    file.unlink()
    with pytest.raises(BundleError, match=r"tuned\.safetensors is missing\. Copy the whole folder again"):
        Bundle.load(tmp_path)


def test_weights_of_another_shape_are_the_documents_fault(tmp_path):
    bundle = write(tmp_path, [CANDIDATES["views"]])
    path = tmp_path / DOCUMENT
    text = json.loads(path.read_text())
    part = text["artefacts"].pop(CANDIDATES["views"].id)
    other = Candidate((Step("heads", {"heads": 3}),), Step("torch"), tuned=True)
    text["artefacts"][other.id] = part
    text["candidates"][-1] |= {"id": other.id, **other.to_json()}
    path.write_text(json.dumps(text))
    bundle = Bundle.load(tmp_path)
    with pytest.raises(BundleError, match=r"bundle\.json is damaged \(RuntimeError: Error"):
        bundle.runner(bundle.result(other.id))
