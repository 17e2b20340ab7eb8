"""`measure`: a name's costs, and a bundle's figures anew."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from anyvit.backends.torch_eager import TorchEager
from anyvit.costs.device import this_device
from anyvit.data import open_data
from anyvit.deploy.bundle import Bundle
from anyvit.errors import ModelError, SettingError
from anyvit.jobs import measure as job
from anyvit.jobs import renewal
from anyvit.jobs.measure import measure
from anyvit.scaling.candidate import Result, Step
from anyvit.scaling.spread.boards import CostTable
from tests.conftest import HASTY, TINY


@pytest.fixture(autouse=True)
def hasty_price(monkeypatch):
    for module in (job, renewal):
        whole = module.price
        monkeypatch.setattr(module, "price", lambda *args, whole=whole, **options: whole(*args, **options, **HASTY))


def as_if_from_elsewhere(folder, **changes):
    """The bundle as another machine would have written it."""
    document = json.loads((folder / "bundle.json").read_text()) | changes
    document["device"] |= {"processor": "another", "fingerprint": "0123456789ab"}
    (folder / "bundle.json").write_text(json.dumps(document))


def test_a_name(monkeypatch):
    monkeypatch.setattr(job, "untrained_memory", lambda form, candidate, conditions: 5e6)
    measurement = measure("test_vit", backends="torch", batch=2)
    assert (measurement.conditions.batch, measurement.conditions.image_size) == (2, 160)
    for result in measurement.results:
        assert set(result.costs) == {
            *("params", "macs", "size", "latency", "latency_p95", "latency_expected", "throughput", "memory"),
        }
        assert all(value > 0 for value in result.costs.values())
    assert json.loads(json.dumps(measurement.to_json()))["device"]["fingerprint"] == measurement.device.fingerprint


def test_a_candidate_that_cannot_be_built_is_left_out_and_told(monkeypatch):
    whole = TorchEager.prepare

    def prepare(self, model, setting, example, *, images):
        if setting:
            raise ModelError("no such numbers")
        assert len(images)
        return whole(self, model, setting, example)

    monkeypatch.setattr(TorchEager, "prepare", prepare)
    monkeypatch.setattr(TorchEager, "settings", lambda self, device: [{}, {"precision": "bfloat16"}])
    monkeypatch.setattr(job, "untrained_memory", lambda form, candidate, conditions: 5e6)
    news = []
    results = measure(TINY, backends="torch,cuda-graphs", progress=news.append).results
    assert [result.id for result in results] == ["full-torch"]
    told = [event.message for event in news]
    assert any(words.startswith("cuda-graphs is left out: CUDA graphs need ") for words in told)
    assert "full-torch-bfloat16 is left out: no such numbers" in told


@pytest.mark.slow
def test_every_runtime_of_a_name(monkeypatch):
    monkeypatch.setattr(job, "untrained_memory", lambda form, candidate, conditions: 5e6)
    results = measure(TINY, backends="torch,onnxruntime,openvino", threads=2).results
    assert {result.plain.backend.name for result in results} == {"torch", "onnxruntime", "openvino"}
    assert {result.plain.backend.setting["threads"] for result in results} == {2}


@pytest.mark.slow
def test_memory_of_a_name_is_measured_in_a_new_process(monkeypatch):
    monkeypatch.setattr(TorchEager, "settings", lambda self, device: [{}])
    (first, *_) = measure(TINY, backends="torch").results
    assert 1e5 < first.costs["memory"] < 1e9


def test_figures_from_elsewhere_are_unproven_until_measured(own_bundle):
    as_if_from_elsewhere(own_bundle)
    foreign = Bundle.load(own_bundle)
    assert not foreign.measured_here
    with pytest.warns(UserWarning, match="unproven here until `anyvit measure "):
        foreign.pick("latency<=1s")
    measure(str(own_bundle))
    bundle = Bundle.load(own_bundle)
    assert bundle.measured_here
    assert bundle.document["promise"]["status"] == "kept"
    assert bundle.pick("latency<=1s, throughput>=1/s")
    assert [result.accuracy for result in bundle.results] == [result.accuracy for result in foreign.results]


def rounded(folder):
    """A bundle from elsewhere whose chosen candidate is in bfloat16, with a bound on its accuracy."""
    bundle = Bundle.load(folder)
    first = next(result for result in bundle.results if not result.plain.backend.setting)
    short = replace(first.plain, backend=Step("torch", {"precision": "bfloat16"}))
    results = [replace(first, accuracy=0.5), Result(short, first.costs, 0.5)]
    bounds = [{"bound": "accuracy>=0.1", "cost": "accuracy", "limit": 0.1, "value": 0.9, "met": True}]
    as_if_from_elsewhere(
        folder,
        candidates=[result.to_json() for result in results],
        chosen=short.id,
        promise={"status": "kept", "bounds": bounds},
        run=bundle.document["run"] | {"budget": "accuracy>=0.1"},
    )
    return Bundle.load(folder)


def test_accuracy_of_reduced_precision_belongs_to_the_device(own_bundle):
    bundle = rounded(own_bundle)
    exact, short = bundle.results
    assert (bundle.accuracy_holds(exact), bundle.accuracy_holds(short)) == (True, False)
    measurement = measure(str(own_bundle))
    renewed = Bundle.load(own_bundle)
    assert renewed.measured_here
    assert renewed.document["accuracy_device"] == "0123456789ab"
    assert renewed.document["promise"]["status"] == "unproven"
    assert [result.accuracy for result in renewed.results] == [0.5, 0.5]
    (note,) = measurement.notes
    assert note.startswith(f"the accuracy of {short.id} was measured on another device")
    with pytest.warns(UserWarning, match=f"the accuracy of {short.id} was measured on another device"):
        assert renewed.pick(None).id == short.id


def test_accuracies_are_measured_again_on_the_validation_images_of_the_run(own_bundle, finished, recwarn):
    bundle = rounded(own_bundle)
    measurement = measure(str(own_bundle), data="digits")
    renewed = Bundle.load(own_bundle)
    assert renewed.document["accuracy_device"] == this_device().fingerprint
    assert measurement.notes == ()
    exact, short = renewed.results
    assert exact.accuracy == finished.result(exact.id).accuracy
    assert short.accuracy == pytest.approx(exact.accuracy, abs=0.05)
    (finding,) = renewed.document["promise"]["bounds"]
    assert finding["value"] != 0.9
    assert renewed.document["promise"]["status"] == "kept"
    assert renewed.pick(None).id == bundle.chosen.id
    assert not [warning for warning in recwarn if "unproven" in str(warning.message)]


def test_accuracies_on_other_images_are_of_those_not_seen(own_bundle, tmp_path):
    rounded(own_bundle)
    test = open_data("digits").splits["test"]
    for index in range(40):
        folder = tmp_path / "other" / Bundle.load(own_bundle).classes[test.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        test.images.load(index).resize((16, 16)).save(folder / f"{index}.png")
    accuracies = [result.accuracy for result in measure(str(own_bundle), data=str(tmp_path / "other")).results]
    assert all(40 * accuracy == pytest.approx(round(40 * accuracy)) for accuracy in accuracies)
    (finding,) = Bundle.load(own_bundle).document["promise"]["bounds"]
    assert finding["value"] == accuracies[1]


def test_the_promise_is_proved_anew(own_bundle, monkeypatch):
    bounds = [
        {"bound": "latency<=1ms", "cost": "latency", "limit": 1e-3, "value": 9e-4, "rounds": [9e-4], "met": True},
        {"bound": "accuracy>=0.1", "cost": "accuracy", "limit": 0.1, "value": 0.4, "met": True},
    ]
    run = json.loads((own_bundle / "bundle.json").read_text())["run"] | {"budget": "latency<=1ms, accuracy>=0.1"}
    as_if_from_elsewhere(own_bundle, promise={"status": "kept", "bounds": bounds}, run=run)
    rounds = [0.002, 0.003, 0.004]
    monkeypatch.setattr("anyvit.deploy.promise.measure_again", lambda bundle, id, costs, picture: {"latency": rounds})
    measure(str(own_bundle))
    promise = Bundle.load(own_bundle).document["promise"]
    assert promise["status"] == "missed"
    latency, accuracy = promise["bounds"]
    assert (latency["value"], latency["rounds"], latency["met"]) == (0.004, rounds, False)
    assert accuracy == bounds[1]


@pytest.mark.parametrize(("model", "modes"), [("hsvit_c2a2_8", {"hub", "boards"}), (TINY, {"heads"})])
def test_a_cost_table(model, modes, tmp_path, monkeypatch):
    whole = job.measure_costs
    monkeypatch.setattr(job, "measure_costs", lambda *args, **options: whole(*args, **options, **HASTY))
    measurement = measure(model, cost_table=str(tmp_path / "table.json"))
    assert measurement.results == []
    assert CostTable.load(tmp_path / "table.json") == measurement.cost_table
    assert set(measurement.cost_table.seconds) == modes
    with pytest.raises(SettingError, match="a cost table holds the seconds of one image: leave out batch 2"):
        measure(model, batch=2, cost_table=str(tmp_path / "other.json"))


def test_a_cost_table_of_a_bundle_leaves_the_bundle(own_bundle, tmp_path, monkeypatch):
    whole, before = job.measure_costs, (own_bundle / "bundle.json").read_bytes()
    monkeypatch.setattr(job, "measure_costs", lambda *args, **options: whole(*args, **options, **HASTY))
    assert sorted(measure(str(own_bundle), cost_table=str(tmp_path / "t.json")).cost_table.seconds) == ["heads"]
    assert (own_bundle / "bundle.json").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights": "pretrained"}, "is a bundle and has its own weights: leave out 'pretrained'"),
        ({"backends": "torch"}, "is a bundle and has its own candidates: leave out --backends torch"),
    ],
)
def test_a_bundle_has_its_own_weights_and_candidates(finished, given, said):
    with pytest.raises(SettingError, match=said):
        measure(str(finished.folder), **given)


def test_data_is_for_bundles():
    with pytest.raises(SettingError, match="judges the candidates of a bundle, and test_vit is none: leave it out"):
        measure("test_vit", data="digits")
