"""A bundle whose chosen candidate is a cascade: it answers, is promised and exported like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import pytest
import torch

import anyvit
from anyvit import backends
from anyvit.backends.torch_eager import TorchEager
from anyvit.costs.budget import Budget
from anyvit.deploy import standalone
from anyvit.deploy.bundle import Bundle, write_bundle
from anyvit.deploy.export import export_candidate
from anyvit.deploy.formats import format_named
from anyvit.deploy.promise import answer_bundled, measure_here, prove
from anyvit.errors import BundleError, SettingError
from anyvit.scaling.candidate import Cascade, Result
from anyvit.scaling.cascade import ALWAYS, CascadeRunner
from anyvit.scaling.pricing import price
from tests.conftest import HASTY
from tests.deploy.tiny import PREPROCESSING, RESULTS, candidate, digits, document, trained, write_tiny

CASCADE = Cascade(candidate(2), candidate(4), 0.8)
COSTS = {"latency": 0.006, "latency_expected": 0.003, "params": 30_000, "size": 150_000}
CHOSEN = Result(CASCADE, COSTS, 0.93, escalated=0.4)
TEST = digits().splits["test"]
IMAGES = torch.stack([PREPROCESSING(TEST.images.load(index)) for index in range(64)])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """One part of its cascade stands among the candidates, the other does not."""
    candidates = [result.to_json() for result in (CHOSEN, *RESULTS[:3])]
    return write_tiny(tmp_path_factory.mktemp("cascade"), candidates=candidates, chosen=CHOSEN.id)


def test_bundle_gives_the_runner_of_both_parts(bundle):
    runner = bundle.runner()
    assert isinstance(runner, CascadeRunner)
    probabilities, went_on = runner.answer(IMAGES)
    large = bundle.runner(RESULTS[0])(IMAGES)
    assert 0 < went_on.sum() < len(IMAGES)
    torch.testing.assert_close(probabilities[went_on], large[went_on])
    assert (probabilities[~went_on].amax(1) >= CASCADE.threshold).all()


def test_predict_and_evaluate_answer_with_it(bundle, tmp_path):
    TEST.images.load(0).save(tmp_path / "0.png")
    (prediction,) = anyvit.predict(str(bundle.folder), [str(tmp_path / "0.png")])
    expected = bundle.runner()(IMAGES[:1])[0]
    assert prediction.label == bundle.classes[int(expected.argmax())]
    assert prediction.probability == pytest.approx(float(expected.max()), abs=1e-4)
    evaluation = anyvit.evaluate(str(bundle.folder))
    assert evaluation.candidate == CHOSEN.id
    assert evaluation.scores.accuracy > 0.5


@pytest.mark.slow
def test_measure_takes_its_figures_anew(tmp_path, monkeypatch):
    content = [CHOSEN.to_json(), RESULTS[0].to_json()]
    run = {"data": "digits", "budget": "latency_expected<=1s"}
    finding = {"bound": run["budget"], "cost": "latency_expected", "limit": 1.0, "value": 0.5, "met": True}
    promise = {"status": "kept", "bounds": [finding]}
    write_tiny(tmp_path, candidates=content, chosen=CHOSEN.id, run=run, promise=promise)
    rounds = {"latency_expected": [0.002, 0.003, 0.001]}
    monkeypatch.setattr("anyvit.deploy.promise.measure_again", lambda bundle, id, costs, picture: rounds)
    monkeypatch.setattr("anyvit.jobs.measure.price", partial(price, **HASTY))
    anyvit.measure(str(tmp_path))
    again = Bundle.load(tmp_path)
    cascade, large = again.results
    assert (cascade.candidate, cascade.accuracy, cascade.escalated) == (CASCADE, 0.93, 0.4)
    least = cascade.costs["latency"] - large.costs["latency"]
    assert cascade.costs["latency_expected"] == pytest.approx(least + 0.4 * large.costs["latency"])
    assert cascade.costs["params"] == large.costs["params"]
    (finding,) = again.document["promise"]["bounds"]
    assert (finding["value"], finding["escalated"], finding["met"]) == (0.003, 0.4, True)


class Kept(NamedTuple):
    """A runner of two classes that gives the first one the same probability for every image."""

    first: float

    def __call__(self, images):
        return torch.tensor([[self.first, 1 - self.first]]).expand(len(images), 2)


class Keeper(TorchEager):
    """Keeps a runner in a file."""

    def save(self, runner, folder):
        (folder / "kept").write_text(str(runner.first))

    def load(self, model, setting, folder):
        return Kept(float((folder / "kept").read_text()))


def test_artefacts_of_the_parts_are_found_by_their_own_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", (Keeper(),))
    content = document() | {"candidates": [CHOSEN.to_json()], "chosen": CHOSEN.id}
    runners = {CASCADE.small.id: Kept(0.75), CASCADE.large.id: Kept(0.25)}
    again = write_bundle(tmp_path, model=trained(), document=content, training_images=[], runners=runners)
    assert set(again.document["artefacts"]) == set(runners)
    assert again.runner()(IMAGES[:2]).tolist() == [[0.25, 0.75]] * 2


def test_cascade_of_one_candidate_twice_is_refused(tmp_path):
    content = write_tiny(tmp_path, candidates=[CHOSEN.to_json()], chosen=CHOSEN.id).document
    content["candidates"][0]["cascade"][0] = content["candidates"][0]["cascade"][1]
    (tmp_path / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"full-torch was given twice"):
        Bundle.load(tmp_path)


@pytest.fixture
def hasty_promise(monkeypatch):
    from anyvit.deploy import promise

    times = promise.time_calls
    monkeypatch.setattr(promise, "time_calls", lambda *arguments: times(*arguments, **HASTY))


def test_promised_latency_is_that_of_both_and_the_expected_one_of_the_share(bundle, monkeypatch):
    from anyvit.deploy import promise

    seen = {}

    def timed(calls, conditions, batch):
        seen.update({name: runner.threshold for name, runner in calls.items()})
        times = {name: 0.010 if runner.threshold > 1 else 0.004 for name, runner in calls.items()}
        return {name: type("", (), {"round_medians": (t,), "p95": t}) for name, t in times.items()}

    monkeypatch.setattr(promise, "time_calls", timed)
    costs = ["latency", "latency_p95", "latency_expected", "throughput"]
    figures = measure_here({"bundle": str(bundle.folder), "id": CHOSEN.id, "costs": costs, "picture": None})
    assert sorted(seen.values()) == [0.0, 2.0, 2.0]
    assert figures["latency"] == figures["latency_p95"] == 0.010
    assert figures["latency_expected"] == pytest.approx(0.004 + 0.4 * 0.006)


def test_expected_latency_of_a_plain_candidate_is_its_latency(bundle, hasty_promise):
    costs = ["latency", "latency_expected"]
    figures = measure_here({"bundle": str(bundle.folder), "id": RESULTS[0].id, "costs": costs, "picture": None})
    assert figures["latency"] == figures["latency_expected"] > 0


def test_findings_say_the_share(bundle, monkeypatch):
    again = {"latency_expected": [0.003, 0.0031], "latency": [0.006, 0.007]}
    monkeypatch.setattr("anyvit.deploy.promise.measure_again", lambda bundle, id, costs, picture: again)
    findings = prove(bundle, CHOSEN, Budget.parse("latency_expected<=4ms, latency<=9ms").bounds)
    assert [finding.get("escalated") for finding in findings] == [0.4, None]
    assert [finding["value"] for finding in findings] == [0.0031, 0.007]
    plain = prove(
        bundle, Result(candidate(4), {"latency_expected": 0.001}), Budget.parse("latency_expected<=4ms").bounds
    )
    assert "escalated" not in plain[0]


def test_memory_is_that_of_both_parts(bundle, monkeypatch):
    asked = []
    monkeypatch.setattr(CascadeRunner, "__call__", lambda runner, images: asked.append(runner.threshold))
    answer_bundled({"bundle": str(bundle.folder), "id": CHOSEN.id})
    assert asked == [ALWAYS]


FORMAT_NAMES = ["onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "torch"))]


@pytest.fixture(scope="module")
def export(bundle):
    """Exports to the usual place, each format once."""
    return cache(lambda name: export_candidate(bundle, CHOSEN, format_named(name), None, TEST))


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_export_is_two_models_and_a_rule_verified_together(name, export, bundle):
    exported = export(name)
    assert exported.verification.images == 200
    assert exported.verification.agreement == 1
    assert exported.verification.holds
    assert exported.candidate == CHOSEN.id
    rule = json.loads((exported.path / "cascade.json").read_text())
    assert rule["threshold"] == CASCADE.threshold
    assert rule["labels"] == list(bundle.classes)
    run, labels, preprocessing = standalone.open_model(str(exported.path / "cascade.json"))
    assert (labels, preprocessing) == (rule["labels"], PREPROCESSING.to_json())
    np.testing.assert_allclose(run(IMAGES.numpy()), bundle.runner()(IMAGES).numpy(), atol=1e-5)
    for name, part in zip(rule["models"], CASCADE.parts, strict=True):
        run, _, _ = standalone.open_model(str(exported.path / name))
        np.testing.assert_allclose(run(IMAGES.numpy()), bundle.runner(Result(part))(IMAGES).numpy(), atol=1e-5)


def test_export_answers_without_anyvit(bundle, export, tmp_path):
    exported = export("onnx")
    assert exported.path == bundle.folder / "onnx-cascade"
    assert exported.script == f"cat {exported.path}/predict.py"
    TEST.images.load(0).save(tmp_path / "0.png")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import predict\n"
        "predict.main(sys.argv[1] + '/cascade.json', '0.png')\n"
        "assert not {'anyvit', 'torch', 'timm'} & {name.split('.')[0] for name in sys.modules}"
    )
    command = [sys.executable, "-P", "-c", program, str(exported.path)]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    path, label, probability = printed.split()
    expected = bundle.runner()(IMAGES[:1])[0]
    assert (path, label) == ("0.png", bundle.classes[int(expected.argmax())])
    assert float(probability) == pytest.approx(float(expected.max()), abs=1e-3)


@pytest.mark.slow
def test_precision_of_the_parts_is_said(bundle, tmp_path):
    mixed = Result(Cascade(candidate(3, "bfloat16"), candidate(4), 0.5))
    export = export_candidate(bundle, mixed, format_named("torch"), tmp_path / "out", TEST)
    assert export.notes == ("heads3-torch-bfloat16 computes in bfloat16; the export holds and computes float32.",)


def test_place_of_the_wrong_kind_is_refused(bundle, tmp_path):
    (tmp_path / "notes").touch()
    for name, words in [
        ("notes", "holds something else than an earlier export"),
        ("model.onnx", r"model\.onnx names a file; a cascade is written as a folder"),
    ]:
        with pytest.raises(SettingError, match=words):
            export_candidate(bundle, CHOSEN, format_named("onnx"), tmp_path / name, TEST)
