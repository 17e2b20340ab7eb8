"""`fit` from images to a promise, and every way in which it ends otherwise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

import anyvit
from anyvit.deploy.bundle import Bundle
from anyvit.errors import BudgetError, Interrupted, ModelError, SettingError
from anyvit.jobs.fit import fit
from tests.conftest import TINY, write_photos

ARGUMENTS = {"model": TINY, "budget": "params<=1M", "epochs": 2}


def test_a_finished_run_leaves_a_whole_bundle(finished):
    document = finished.document
    assert document["finished"]
    assert document["promise"]["status"] == "kept"
    assert document["promise"]["bounds"][0]["bound"] == "params<=1M"
    assert document["chosen"] in document["front"]
    assert document["test"]["interval"][0] <= document["test"]["accuracy"] <= document["test"]["interval"][1]
    assert {"heads1-torch", "heads2-torch", "full-torch"} <= {result.id for result in finished.results}
    assert all(result.accuracy is not None for result in finished.results)
    assert (finished.folder / "report.html").exists()
    left = {path.name for path in (finished.folder / "run").iterdir()}
    assert left == {"arguments.json", "lock", "logs"}


def test_the_chosen_one_is_the_most_accurate_inside(finished):
    assert finished.chosen.accuracy == max(result.accuracy for result in finished.results)


def test_the_same_arguments_return_the_finished_bundle(finished):
    before = (finished.folder / "bundle.json").stat().st_mtime_ns
    news = []
    again = fit("digits", **ARGUMENTS, out=str(finished.folder), progress=news.append)
    assert again.document == finished.document
    assert (finished.folder / "bundle.json").stat().st_mtime_ns == before
    assert [event.message for event in news if "holds this very run, finished" in event.message]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 3}, "epochs 2 (not 3)"),
        ({"budget": "params<=2M"}, "budget 'params<=1M' (not 'params<=2M')"),
        ({"seed": 7, "levers": "none"}, "levers 'auto' (not 'none'), seed 0 (not 7)"),
    ],
)
def test_other_arguments_are_refused_by_name(finished, changes, words):
    with pytest.raises(SettingError) as caught:
        fit("digits", **{**ARGUMENTS, **changes}, out=str(finished.folder))
    assert f"holds a run with {words}. Choose another --out" in str(caught.value)


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path, photos):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingError, match=r"holds something that is no run\. Choose another --out\.$"):
        fit(str(photos), **ARGUMENTS, out=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_runs_at_once_are_refused(own_bundle):
    with FileLock(own_bundle / "run" / "lock"), pytest.raises(SettingError, match="is being written by another run"):
        fit("digits", **ARGUMENTS, out=str(own_bundle))


@pytest.mark.parametrize("model", [None, TINY])
def test_no_is_said_early_and_leaves_nothing_behind(photos, tmp_path, hasty, model):
    out, news = tmp_path / "runs" / "photos", []
    with pytest.raises(BudgetError, match=r"latency<=1us \(best: [\d.]+ [um]s with .*-torch.*cannot be met") as caught:
        fit(str(photos), model=model, budget="latency<=1us", out=str(out), progress=news.append)
    assert caught.value.exit_code == 3
    assert "--anyway" in str(caught.value)
    assert not out.exists()
    assert "train" not in {event.stage for event in news}


def test_anyway_trains_all_the_same_and_misses(photos, tmp_path, hasty):
    arguments = {"model": TINY, "budget": "params<=1k", "epochs": 1, "out": str(tmp_path / "out"), "anyway": True}
    with pytest.raises(BudgetError, match=r"the closest candidate, heads1-torch, misses params<=1k by 9\d\d\.\d%"):
        fit(str(photos), **arguments)
    bundle = Bundle.load(tmp_path / "out")
    assert bundle.document["promise"]["status"] == "missed"
    assert (bundle.chosen.id, bundle.document["finished"]) == ("heads1-torch", True)


@pytest.fixture(scope="module")
def random_labels(tmp_path_factory):
    """300 pictures of noise, labelled by chance."""
    folder = tmp_path_factory.mktemp("random")
    chance = np.random.default_rng(0).permutation(300)
    (folder / "all").mkdir()
    write_photos(folder, {"all": 300})
    for name, numbers in (("heads", chance[:150]), ("tails", chance[150:])):
        (folder / name).mkdir()
        for number in numbers:
            (folder / "all" / f"{number}.png").rename(folder / name / f"{number}.png")
    (folder / "all").rmdir()
    return folder


def test_random_labels_are_promised_at_chance_and_contradict_an_accuracy_bound(random_labels, tmp_path, hasty):
    """Found only after training: a whole bundle all the same, and a status of 3."""
    out = tmp_path / "out"
    with pytest.raises(BudgetError, match=r"misses accuracy>=0\.999 by \d\d\.\d% \(\d\d.*%\)\. It is kept whole in"):
        fit(str(random_labels), model=TINY, budget="params<=1M, accuracy>=0.999", epochs=4, out=str(out))
    bundle = Bundle.load(out)
    test = bundle.document["test"]
    assert test["interval"][0] <= 0.5 <= test["interval"][1]
    assert test["count"] == 60
    params, accuracy = bundle.document["promise"]["bounds"]
    assert (params["met"], accuracy["met"], accuracy["lower_end_meets"]) == (True, False, False)
    assert bundle.document["promise"]["status"] == "missed"
    assert (out / "report.html").exists()
    assert anyvit.predict(str(out), str(random_labels / "heads"))[0].label in ("heads", "tails")


def test_a_file_of_weights_is_started_from(photos, tmp_path, hasty):
    """With an almost empty training the weights come out nearly as they went in."""
    torch.manual_seed(1)
    start = anyvit.models.create_model(TINY, num_classes=2).state_dict()
    save_file(start, tmp_path / "start.safetensors")
    common = {"model": TINY, "epochs": 0.01, "budget": "params<=1M"}
    bundle = fit(str(photos), **common, weights=str(tmp_path / "start.safetensors"), out=str(tmp_path / "warm"))
    torch.testing.assert_close(bundle.model().state_dict(), start, atol=1e-2, rtol=0)
    assert bundle.document["run"]["weights"] == str(tmp_path / "start.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet"])
def test_without_levers_any_timm_model_is_trained(photos, tmp_path, hasty, model):
    bundle = fit(str(photos), model=model, levers="none", epochs=1, budget="params<=1M", out=str(tmp_path / "out"))
    assert {result.candidate.levers for result in bundle.results} == {()}
    assert bundle.document["model"]["levers"] == []
    assert anyvit.predict(str(bundle.folder), str(photos / "dark"))[0].label in ("dark", "light")


def test_a_model_that_the_lever_cannot_take_is_refused_and_nothing_is_left(photos, tmp_path, hasty):
    with pytest.raises(ModelError, match="no lever that was named applies: 'heads': a EfficientNet"):
        fit(str(photos), model="test_efficientnet", levers="heads", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_goes_on_where_it_stopped(photos, tmp_path, hasty):
    """The plan is kept, so that the prices of before decide; the outcome is that of a run in one go."""
    arguments = {"model": TINY, "budget": "params<=1M", "epochs": 4}
    whole = fit(str(photos), **arguments, out=str(tmp_path / "whole"))

    def stop(event):
        if event.stage == "score":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        fit(str(photos), **arguments, out=str(tmp_path / "out"), progress=stop)
    draft = Bundle.load(tmp_path / "out")
    assert (draft.document["finished"], draft.document["promise"]["status"]) == (False, "unproven")
    assert anyvit.predict(str(tmp_path / "out"), str(photos / "dark"))[0].label
    news = []
    again = fit(str(photos), **arguments, out=str(tmp_path / "out"), progress=news.append)
    assert "model" not in {event.stage for event in news}  # chosen before
    assert again.document["weights"] == whole.document["weights"]
    assert again.chosen.id == whole.chosen.id
    assert not list((tmp_path / "out" / "run").glob("*.ckpt"))


def test_a_run_that_ended_before_its_report_writes_it_when_repeated(photos, tmp_path, hasty, monkeypatch):
    """The last bundle is written, the report is not: killed in between."""
    arguments = {"model": TINY, "budget": "params<=1M", "epochs": 1, "out": str(tmp_path / "out")}
    with monkeypatch.context() as patch:
        patch.setattr("anyvit.jobs.steps.write_report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Interrupted):
            fit(str(photos), **arguments)
    before = Bundle.load(tmp_path / "out").document
    assert before["finished"]
    after = fit(str(photos), **arguments).document
    assert (after["weights"], after["chosen"], after["test"]) == (before["weights"], before["chosen"], before["test"])
    assert (tmp_path / "out" / "report.html").exists()
    assert not list((tmp_path / "out" / "run").glob("*.ckpt"))


def test_a_run_that_missed_says_so_again(own_bundle):
    document = json.loads((own_bundle / "bundle.json").read_text())
    document["promise"] = {
        "status": "missed",
        "bounds": [{"bound": "params<=1M", "cost": "params", "limit": 1e6, "value": 2e6, "met": False}],
    }
    (own_bundle / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(BudgetError, match="the closest candidate"):
        fit("digits", **ARGUMENTS, out=str(own_bundle))


def test_the_seed_decides_everything(photos, tmp_path, hasty):
    """The first weights too."""
    common = {"model": TINY, "budget": "params<=1M", "epochs": 0.01}
    bundles = [fit(str(photos), **common, seed=seed, out=str(tmp_path / f"{name}")) for name, seed in enumerate((5, 5))]
    assert bundles[0].document["weights"] == bundles[1].document["weights"]


def test_a_corrected_argument_is_no_other_run(photos, tmp_path, hasty):
    """What is refused before training leaves nothing that the corrected command would be held against."""
    out = tmp_path / "out"
    for wrong in ({"recipe": "scratch-tin"}, {"weights": str(tmp_path / "none.safetensors")}, {"time": "1s"}):
        with pytest.raises(anyvit.errors.AnyViTError):
            fit(str(photos), model=TINY, **wrong, out=str(out))
        assert not out.exists(), wrong


@pytest.mark.slow
def test_measured_bounds_are_proved_and_proved_again(photos, tmp_path, hasty, monkeypatch):
    monkeypatch.setattr("anyvit.deploy.promise.PROCESSES", 1)  # each loads PyTorch anew, and so does each candidate
    monkeypatch.setattr("anyvit.backends.precision.int8_precisions", lambda device: [])
    monkeypatch.setattr("anyvit.jobs.plan.untrained_memory", lambda *_: 5e6)
    budget = "latency_p95<=1s, latency_e2e<=1s, memory<=2GB, throughput>=10/s"
    arguments = {"model": TINY, "levers": "none", "epochs": 1, "budget": budget, "out": str(tmp_path / "out")}
    bundle = fit(str(photos), **arguments)
    findings = bundle.document["promise"]["bounds"]
    assert [finding["bound"] for finding in findings] == budget.split(", ")
    assert all(finding["met"] and len(finding["rounds"]) == 1 for finding in findings)
    assert all(set(result.costs) >= {"latency_e2e", "memory", "throughput"} for result in bundle.results)
    anyvit.measure(str(tmp_path / "out"))
    again = Bundle.load(tmp_path / "out").document["promise"]
    assert again["status"] == "kept"
    assert [finding["bound"] for finding in again["bounds"]] == budget.split(", ")


@pytest.mark.slow
def test_an_hsvit_learns_the_digits_with_fewer_groups_by_choice(tmp_path, hasty):
    """Its own lever is found by itself; 95 % is what is asked of it."""
    bundle = anyvit.fit("digits", model="hsvit_c2a2_8", budget="params<=50k", out=str(tmp_path / "run"), epochs=15)
    assert bundle.document["model"]["levers"] == [{"name": "groups", "setting": {}}]
    assert {result.candidate.levers[0].setting.get("groups") for result in bundle.results} == {None, 3, 2, 1}
    assert bundle.chosen.costs["params"] <= 50_000
    assert bundle.document["test"]["accuracy"] > 0.95


@pytest.mark.slow
def test_a_model_of_one_channel_gets_colour_images(tmp_path, hasty, photos):
    bundle = anyvit.fit(str(photos), model="hsvit_c2a2_28", levers="none", out=str(tmp_path / "run"), epochs=0.1)
    assert bundle.document["model"]["arguments"] == {"num_classes": 2, "in_chans": 3}


def test_a_frozen_backbone_needs_weights(tmp_path, hasty, photos, monkeypatch):
    from anyvit.models import hsvit

    monkeypatch.setitem(hsvit.VARIANTS["hsvit_resnet50_224"].arguments, "backbone", "resnet18")
    with pytest.raises(SettingError, match="a part of hsvit_resnet50_224 does not learn: start from --weights"):
        anyvit.fit(str(photos), model="hsvit_resnet50_224", levers="none", out=str(tmp_path / "run"), epochs=0.1)
