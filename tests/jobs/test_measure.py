"""`measure`: a name's costs, and a bundle's figures anew."""

from __future__ import annotations

import json

import pytest

from anyvit.deploy.bundle import Bundle
from anyvit.errors import SettingError
from anyvit.jobs import measure as job
from anyvit.jobs.measure import measure
from anyvit.scaling.spread.boards import CostTable
from tests.conftest import HASTY, TINY


@pytest.fixture(autouse=True)
def hasty_price(monkeypatch):
    whole = job.price
    monkeypatch.setattr(job, "price", lambda *args, **options: whole(*args, **options, **HASTY))


def as_if_from_elsewhere(folder, **changes):
    """The bundle as another machine would have written it."""
    document = json.loads((folder / "bundle.json").read_text()) | changes
    document["device"] |= {"processor": "another", "fingerprint": "0123456789ab"}
    (folder / "bundle.json").write_text(json.dumps(document))


def test_a_name(monkeypatch):
    monkeypatch.setattr(job, "untrained_memory", lambda form, candidate, conditions: 5e6)
    measurement = measure("test_vit", batch=2)
    assert (measurement.conditions.batch, measurement.conditions.image_size) == (2, 160)
    for result in measurement.results:
        assert set(result.costs) == {
            *("params", "macs", "size", "latency", "latency_p95", "throughput", "memory"),
        }
        assert all(value > 0 for value in result.costs.values())
    assert json.loads(json.dumps(measurement.to_json()))["device"]["fingerprint"] == measurement.device.fingerprint


@pytest.mark.slow
def test_memory_of_a_name_is_measured_in_a_new_process():
    (first, *_) = measure(TINY).results
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


def test_a_bundle_has_its_own_weights(finished):
    with pytest.raises(SettingError, match="is a bundle and has its own weights: leave out 'pretrained'"):
        measure(str(finished.folder), weights="pretrained")
