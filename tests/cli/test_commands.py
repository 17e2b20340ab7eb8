"""Every command, from what is typed to what is shown."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

import anyvit
from anyvit import cli
from anyvit.deploy.bundle import Bundle
from anyvit.errors import BudgetError, Interrupted
from anyvit.protocols import Event
from tests.conftest import HASTY, TINY


def test_fit_predict_evaluate_export_on_a_folder_of_pictures(run, photos, tmp_path, hasty):
    """The commands of the README, on a folder of photographs."""
    out = tmp_path / "runs" / "photos"
    status, shown, progress = run(
        "fit", photos, "--budget", "params<=1M", "--model", TINY, "--epochs", 30, "--out", out
    )
    assert status == 0
    assert "* chosen: " in shown
    assert "kept: params<=1M, measured again: " in shown
    assert "test accuracy " in shown
    assert f"{out / 'report.html'} tells the whole story" in shown.replace("\n", "")
    assert "2 classes, images: 28 train, 4 val, 8 test" in progress

    status, shown, _ = run("predict", out, photos / "dark" / "0.png")
    assert (status, shown.split()[-2]) == (0, "dark")
    status, shown, _ = run("evaluate", out)
    assert status == 0
    assert "on 8 images of" in shown
    assert "95% interval" in shown
    status, shown, _ = run("export", out, "--format", "onnx", "--out", tmp_path / "model.onnx")
    assert status == 0
    assert (tmp_path / "model.onnx").exists()
    assert "Verified on all 8 images there are" in shown


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three digits in a folder of two, one of them one deeper."""
    folder = tmp_path_factory.mktemp("pictures")
    split = anyvit.data.open_data("digits").splits["test"]
    (folder / "deep").mkdir()
    for index, name in enumerate(("a.png", "b.png", "deep/c.png")):
        split.images.load(index).resize((16, 16), Image.Resampling.NEAREST).save(folder / name)
    return folder


def test_predict_files_folders_and_patterns(run, finished, pictures):
    assert len(run("predict", finished.folder, pictures / "a.png", pictures / "b.png")[1].splitlines()) == 3
    assert len(run("predict", finished.folder, pictures)[1].splitlines()) == 4
    assert len(run("predict", finished.folder, f"{pictures}/*.png")[1].splitlines()) == 3


def test_predict_json_csv_and_budget(run, finished, pictures):
    answers = json.loads(run("predict", finished.folder, pictures, "--json", "--top-k", 3)[1])
    assert [len(answer["top"]) for answer in answers] == [3, 3, 3]
    lines = list(csv.DictReader(io.StringIO(run("predict", finished.folder, pictures, "--csv")[1])))
    assert [line["label"] for line in lines] == [answer["label"] for answer in answers]
    assert float(lines[0]["probability"]) == pytest.approx(answers[0]["probability"], abs=1e-5)
    small = json.loads(run("predict", finished.folder, pictures, "--json", "--budget", "params<=20k")[1])
    assert small[0]["probability"] != answers[0]["probability"]
    status, _, err = run("predict", finished.folder, pictures, "--budget", "params<=20")
    assert status == 3
    assert "the closest, heads1-torch, misses params<=20" in err


def test_predict_standard_input(run, finished, pictures, monkeypatch):
    content = io.BytesIO((pictures / "a.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    (answer,) = json.loads(run("predict", finished.folder, "-", "--json")[1])
    (expected,) = anyvit.predict(str(finished.folder), [str(pictures / "a.png")])
    assert (answer["name"], answer["label"]) == ("-", expected.label)


def test_predict_passes_over_what_cannot_be_read(run, finished, pictures, tmp_path):
    shutil.copy(pictures / "a.png", tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"")
    status, shown, _ = run("predict", finished.folder, tmp_path, "--csv")
    assert status == 0
    bad, good = csv.DictReader(io.StringIO(shown))
    assert (bad["label"], "the file is empty" in bad["error"]) == ("", True)
    assert good["label"]


def test_evaluate(run, finished):
    status, shown, _ = run("evaluate", finished.folder)
    assert status == 0
    assert "rows: the truth; columns: the answer" in shown
    told = json.loads(run("evaluate", finished.folder, "--json")[1])
    assert told["scores"]["count"] == 359
    assert told["scores"]["accuracy"] == pytest.approx(finished.document["test"]["accuracy"])


def test_measure_a_bundle_and_a_name(run, own_bundle, monkeypatch):
    from anyvit.jobs import measure, renewal

    for module in (measure, renewal):
        whole = module.price
        monkeypatch.setattr(module, "price", lambda *args, whole=whole, **options: whole(*args, **options, **HASTY))
    monkeypatch.setattr(measure, "untrained_memory", lambda *_: 5e6)
    status, shown, _ = run("measure", own_bundle)
    assert (status, "heads1-torch" in shown, "8 px, batch 1, threads 1" in shown) == (0, True, True)
    assert "throughput" in Bundle.load(own_bundle).chosen.costs
    assert "heads1-torch" in run("measure", own_bundle, "--data", "digits")[1]
    (first, *_) = json.loads(run("measure", TINY, "--backends", "torch", "--batch", 2, "--json")[1])["results"]
    assert first["costs"]["memory"] == 5e6


def test_list_and_doctor(run):
    status, shown, _ = run("list")
    assert (status, TINY in shown, "heads" in shown) == (0, True, True)
    assert {entry["kind"] for entry in json.loads(run("list", "levers", "--json")[1])} == {"lever"}
    status, shown, _ = run("doctor")
    assert (status, "torch" in shown) == (0, True)
    assert any(check["name"] == "timm" for check in json.loads(run("doctor", "--json")[1]))


def test_quickstart_is_fit_on_digits(run, finished, monkeypatch):
    asked = {}

    def fit(data, *, progress, **arguments):
        asked.update(data=data, **arguments)
        return finished

    monkeypatch.setattr("anyvit.jobs.quickstart.fit", fit)
    status, shown, _ = run("quickstart", "--seed", 3)
    assert (status, "* chosen: " in shown) == (0, True)
    assert asked["data"] == "digits"
    assert asked["out"] == "runs/quickstart"
    assert asked["seed"] == 3
    assert "latency<=" in asked["budget"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("predict", "no/such/folder", "a.png"), 5, "no/such/folder does not exist: name the folder that `anyvit fit`"),
        (("fit", "no/such/data"), 4, "no/such/data does not exist. What opens: "),
        (("fit", "digits", "--budget", "latncy<=5ms"), 2, "unknown cost 'latncy'. Did you mean 'latency'?"),
        (("list", "modles"), 2, "unknown kind 'modles'. Did you mean 'models'?"),
        (("measure", "no_such_model"), 2, "unknown model 'no_such_model'."),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(run, tmp_path, monkeypatch, words, status, said):
    monkeypatch.chdir(tmp_path)
    ended, shown, err = run(*words)
    assert (ended, shown) == (status, "")
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in err
    assert not [path for path in tmp_path.rglob("*") if path.name != "runs"]


@pytest.mark.parametrize("words", [(), ("--help",), ("fit", "--help")])
def test_help(words):
    shown = CliRunner().invoke(cli.app, list(words))
    assert "Usage:" in shown.output


def test_what_typer_refuses_has_status_two(run):
    status, _, err = run("fit", "digits", "--epochs", "many")
    assert status == 2
    assert "Invalid value for '--epochs'" in err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (BudgetError("too slow."), 3, "error: too slow."),
        (Interrupted("stopped after 3 steps."), 130, "error: stopped after 3 steps."),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_ends_that_a_job_can_come_to(run, monkeypatch, error, status, said):
    def fails(**_):
        raise error

    monkeypatch.setattr(anyvit, "doctor", fails, raising=False)
    ended, _, err = run("doctor")
    assert ended == status
    assert said in err
    assert "Traceback" not in err


def test_progress_keeps_news_and_writes_to_standard_error(capfd):
    from anyvit.cli.progress import ShowProgress, describe

    with ShowProgress() as progress:
        progress(Event("data", "opening [photos]"))
        progress(Event("train", done=0.5, figures={"loss": 1.25}))
    out, _ = capfd.readouterr()
    assert out == ""
    event = Event("train", "", 0.5, 125.0, {"loss": 1.2345, "accuracy": 0.912, "images_per_second": 850.4})
    assert describe(event) == "loss 1.23  accuracy 91.2%  850 images/s  2:05 left"
