"""`design`: from a budget to a shape, by every method, and how it ends where nothing fits."""

from __future__ import annotations

import json

import pytest

import anyvit
from anyvit.costs.counts import vit_params
from anyvit.deploy.designed import Design
from anyvit.errors import BudgetError, BundleError, Interrupted, SettingError
from anyvit.jobs.design import design
from anyvit.scaling.design import by_asvit, by_scaling, by_score, by_supernet, predicting
from anyvit.scaling.design.by_score import shape_of
from anyvit.scaling.design.supernet import Plan
from tests.conftest import hurried

BUDGET = "params<=60k, macs<=1M"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(by_score, "PLAN", Plan(population=8, generations=1, parents=4, mutants=2, children=2))
    monkeypatch.setattr(by_score, "FINALISTS", 3)


@pytest.fixture(scope="module")
def designed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_score, "PLAN", Plan(population=8, generations=1, parents=4, mutants=2, children=2))
        return design(budget=BUDGET, image_size=16, out=str(tmp_path_factory.mktemp("designed") / "out"))


def test_the_chosen_shape_keeps_the_budget_and_builds(designed):
    model = designed.form.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == vit_params(shape_of(designed.chosen))
    assert designed.chosen.costs["params"] <= 60_000
    assert designed.chosen.costs["macs"] <= 1_000_000
    assert designed.document["promise"]["status"] == "kept"
    assert designed.chosen.worth == max(each.worth for each in designed.ranking if each.fits)


def test_it_uses_most_of_the_budget(designed):
    shares = [designed.chosen.costs["params"] / 60_000, designed.chosen.costs["macs"] / 1_000_000]
    assert max(shares) >= by_score.FULL * by_score.AIM


def test_it_leaves_a_report_and_nothing_of_the_search(designed):
    page = (designed.folder / "report.html").read_text()
    assert designed.chosen.name in page
    assert "What shapes cost" in page
    assert {path.name for path in (designed.folder / "run").iterdir()} == {"arguments.json", "lock"}


def test_the_same_call_gives_the_same_design(designed, tmp_path):
    again = design(budget=BUDGET, image_size=16, out=str(designed.folder))
    assert again.document == designed.document
    other = design(budget=BUDGET, image_size=16, out=str(tmp_path / "other"))
    assert other.chosen.worth is not None
    assert other.chosen.costs["params"] <= 60_000


def test_an_interrupted_design_goes_on_with_what_it_knew(tmp_path):
    arguments = {"budget": BUDGET, "image_size": 16, "out": str(tmp_path / "out")}

    def stop(event):
        if event.stage == "search" and event.done and event.done > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        design(**arguments, progress=stop)
    known = json.loads((tmp_path / "out" / "run" / "measured-scores.json").read_text())
    assert known
    resumed = design(**arguments)
    alone = design(budget=BUDGET, image_size=16, out=str(tmp_path / "alone"))
    assert resumed.document["ranking"] == alone.document["ranking"]


@pytest.fixture
def quick(monkeypatch):
    """Few shapes are measured, a few draws decide."""
    for module, name, value in (
        (by_score, "DRAWS", 1),
        (by_score, "IMAGES", 4),
        (by_scaling, "DRAWS", 1),
        (by_asvit, "STEPS", 2),
        (by_asvit, "IMAGES", 4),
        (predicting, "MEASURED", 30),
    ):
        monkeypatch.setattr(module, name, value)
    with hurried():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("method", "budget"),
    [("score", "latency<=4ms, params<=400k"), ("scaling", "latency<=4ms, params<=400k"), ("asvit", "params<=3M")],
)
def test_every_method_without_images_keeps_its_budget(method, budget, tmp_path):
    found = design(budget=budget, image_size=32, method=method, out=str(tmp_path / "out"))
    assert found.chosen.fits
    assert all(bound["rounds"] for bound in found.document["promise"]["bounds"])
    assert found.document["path"]
    assert (found.folder / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "budget"), [("elasticvit", "macs<=2M"), ("vit_resnas", "macs<=20M")])
def test_a_super_network_leaves_weights_to_go_on_from(method, budget, tmp_path, monkeypatch):
    plan = Plan(population=2, generations=1, parents=2, mutants=1, children=1, attempts=2000)
    monkeypatch.setattr(by_supernet, "PLAN", plan)
    out = str(tmp_path / "out")
    found = design("digits", budget=budget, method=method, epochs=0.5, out=out)
    assert found.chosen.costs["macs"] <= found.document["promise"]["bounds"][0]["limit"]
    trained = {"weights": f"{out}/weights.safetensors", "epochs": 0.5, "out": str(tmp_path / "fit")}
    assert anyvit.fit("digits", model=out, **trained).document["model"]["name"] == method


@pytest.mark.slow
def test_scaling_trains_its_candidates_on_images(tmp_path):
    arguments = {"budget": "macs<=200k", "method": "scaling", "epochs": 1, "out": str(tmp_path / "out")}
    found = design("digits", **arguments)
    assert found.document["measure"] == "accuracy after 1 epochs"
    assert found.chosen.form.arguments["num_classes"] == 10
    assert any("strategy, as exponents of the cost" in note for note in found.document["notes"])


@pytest.mark.slow
def test_fit_trains_a_design_and_designs_by_itself(tmp_path, hasty):
    found = design("digits", budget="params<=20k", out=str(tmp_path / "design"))
    bundle = anyvit.fit("digits", model=str(found.folder), epochs=1, out=str(tmp_path / "fit"))
    assert bundle.document["model"]["name"] == "shaped_vit"
    assert bundle.document["model"]["arguments"]["depth"] == found.form.arguments["depth"]
    bundle = anyvit.fit("digits", budget="params<=20k", model="auto", epochs=1, out=str(tmp_path / "auto"))
    assert bundle.document["run"]["why"].startswith("designed for params<=20k")
    assert bundle.chosen.costs["params"] <= 20_000


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"budget": "accuracy>=0.9"}, SettingError, "a design is held to latency, macs, params, size, memory"),
        ({"budget": ""}, SettingError, "a design needs a budget"),
        ({"budget": BUDGET, "method": "scor"}, SettingError, "unknown method 'scor'. Did you mean 'score'?"),
        ({"budget": BUDGET, "backend": "torch:int3"}, SettingError, "unknown precision of torch 'int3'"),
        ({"budget": BUDGET, "image_size": 17}, SettingError, "image size 17 has no patch size"),
        ({"budget": BUDGET, "batch": 0}, SettingError, "batch must be at least 1"),
        ({"budget": BUDGET, "image_size": 33, "method": "asvit"}, SettingError, "multiple of 32"),
        ({"budget": "params<=10", "image_size": 16}, BudgetError, "Ask for about"),
    ],
    ids=str,
)
def test_refusals_leave_nothing(arguments, error, words, tmp_path):
    with pytest.raises(error) as caught:
        design(**{"image_size": 16, **arguments}, out=str(tmp_path / "out"))
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_design(tmp_path):
    with pytest.raises(BundleError, match="is no design"):
        Design.load(tmp_path)
    (tmp_path / "design.json").write_text("{}")
    with pytest.raises(BundleError, match="is damaged"):
        Design.load(tmp_path)
