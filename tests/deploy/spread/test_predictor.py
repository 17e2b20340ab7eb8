"""`predict` and `load` with a placed folder: the same as with a bundle, and who voted."""

from __future__ import annotations

import csv
import inspect
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("grpc", reason="needs the extra spread")

import anyvit
from anyvit.cli import app
from anyvit.deploy.prediction import Answering
from anyvit.errors import SettingError, SpreadError
from tests.deploy.spread.fleet import CLASSES, KNOWN, PREPROCESSING, fleet, logits_of


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Two boards, and a third and fourth that are not there."""
    with fleet(tmp_path_factory.mktemp("predictor") / "placed", 4) as running:
        yield running


@pytest.fixture(scope="module")
def folder(running):
    return str(running.placed.folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures that are not of the model's size."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(7):
        pixels = random.integers(0, 256, (12, 10 + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


def expected(file, groups=range(4)):
    with Image.open(file) as image:
        pixels = torch.from_numpy(np.array(PREPROCESSING.crop(image.convert("RGB")))).permute(2, 0, 1)
    return logits_of(pixels[None], groups).softmax(1)[0]


def test_it_answers_as_one_process_does(folder, files):
    with anyvit.load(folder) as predictor:
        for batch_size in (1, 3):
            predictions = predictor.predict(files, top_k=10, batch_size=batch_size)
            assert [prediction.name for prediction in predictions] == list(map(str, files))
            for prediction, file in zip(predictions, files, strict=True):
                found = dict(prediction.top)
                torch.testing.assert_close(
                    torch.tensor([found[name] for name in CLASSES]), expected(file), rtol=0, atol=1e-5
                )
                assert (prediction.vote.voted, prediction.vote.of, prediction.vote.missing) == (4, 4, {})
                assert prediction.vote.known == KNOWN[0]


def test_an_unreadable_image_is_named(folder, files, tmp_path):
    (tmp_path / "empty.png").touch()
    with anyvit.load(folder) as predictor:
        first, wrong, last = predictor.predict([files[0], tmp_path / "empty.png", files[1]], batch_size=2)
    assert "the file is empty" in wrong.error
    assert (first.label, last.label) == tuple(CLASSES[expected(file).argmax()] for file in files[:2])


def test_arguments_that_are_not_for_it_are_refused(folder, files, finished):
    with anyvit.load(folder) as predictor, pytest.raises(SettingError, match="leave the budget out"):
        predictor.predict(files, budget="latency<=1ms")
    with pytest.raises(SettingError, match="deadline: '3 bananas'|unknown unit 'bananas'"):
        anyvit.load(folder, deadline="3 bananas")
    for argument in ({"quorum": 2}, {"deadline": "1s"}, {"transport": "grpc"}, {"token_file": "t"}, {"tls_ca": "c"}):
        with pytest.raises(SettingError, match=f"{next(iter(argument))} is about boards"):
            anyvit.load(finished.folder, **argument)


def test_predict_and_load_share_their_arguments():
    predict, load, method = (
        inspect.signature(function).parameters for function in (anyvit.predict, anyvit.load, Answering.predict)
    )
    for name in ("quorum", "deadline", "transport", "token_file", "tls_ca"):
        assert predict[name] == load[name]
    for name in ("budget", "top_k", "batch_size"):
        assert predict[name].default == method[name].default


def run(*words):
    return CliRunner().invoke(app, ["predict", *map(str, words)], terminal_width=200)


def test_the_command_shows_who_voted(running, folder, files):
    whole = run(folder, files[0])
    assert whole.stdout.split()[:4] == ["image", "answer", "probability", "votes"]
    assert "4 of 4" in whole.stdout
    assert "missing" not in whole.stdout
    running.stop(2)
    try:
        shown = run(folder, files[0], files[1], "--deadline", "5s").stdout
        assert shown.count("3 of 4") == 2
        assert shown.count("missing: board-2 (UNAVAILABLE") == 1
        assert "with 1 of 4 missing, accuracy is 80.0% in the mean, 75.0% at worst (4 sets" in shown
        (answer,) = json.loads(run(folder, files[0], "--json").stdout)
        assert answer["vote"]["voted"] == 3
        assert answer["vote"]["known"] == {"missing": 1, "mean": 0.8, "worst": 0.75, "sets": 4}
        (row,) = csv.DictReader(io.StringIO(run(folder, files[0], "--csv").stdout))
        assert (row["voted"], row["of"], row["known_mean"]) == ("3", "4", "0.800000")
        assert row["missing"].startswith("board-2: UNAVAILABLE")
        failed = run(folder, files[0], "--quorum", 4, "--deadline", "400ms")
        assert isinstance(failed.exception, SpreadError)
    finally:
        running.start(2)


def test_answers_of_a_bundle_say_nothing_of_votes(finished, files):
    (answer,) = json.loads(run(finished.folder, files[0], "--json").stdout)
    assert list(answer) == ["name", "label", "probability", "top", "error"]
    assert "votes" not in run(finished.folder, files[0]).stdout
    assert run(finished.folder, files[0], "--csv").stdout.splitlines()[0] == "image,rank,label,probability,error"
