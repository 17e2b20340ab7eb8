"""`loadtest`: from an address to a report."""

from __future__ import annotations

import io
import json
import os
import signal
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("aiohttp", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("starlette", reason="needs the extra serve")

from anyvit.data import open_data
from anyvit.data.formats.format import Found, Labelled
from anyvit.data.images import ArrayImages
from anyvit.deploy.load import OUTCOMES
from anyvit.errors import AnyViTError, DataError, Interrupted, MissingExtraError, SettingError
from anyvit.jobs import load_pictures
from anyvit.jobs import loadtest as module
from anyvit.jobs.loadtest import loadtest
from tests.conftest import write_photos
from tests.deploy.stub_server import Stub, free_port, prediction, serving

BRIEF = {"rate": 100, "duration": "0.3s"}


def by_brightness(body):
    """What the photographs of the tests show."""
    return prediction("light" if np.asarray(Image.open(io.BytesIO(body))).mean() > 127 else "dark")


@pytest.fixture(scope="module")
def running():
    with serving(Stub()) as stub:
        yield stub


@pytest.fixture
def server(running):
    running.reset()
    running.answer = by_brightness
    return running


def test_labelled_data_are_sent_as_they_lie_and_scored(server, photos, tmp_path):
    out, events = tmp_path / "deep" / "load.json", []
    report = loadtest(server.url, data=str(photos), out=str(out), deadline="2s", progress=events.append, **BRIEF)
    assert report.outcomes["answered"] == report.sent == len(server.heard)
    assert (report.slo_ms, report.accuracy.value, report.accuracy.count) == (5000, 1.0, report.sent)
    assert report.candidates == {"full-torch": 1.0}
    files = {path.read_bytes() for path in photos.rglob("*.png")}
    assert {body for _, body in server.heard} <= files
    assert {headers["anyvit-deadline"] for headers, _ in server.heard} == {"2000ms"}
    assert any(event.stage == "load" and event.done is not None for event in events)

    text = out.read_text(encoding="utf-8")
    told = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert told["report"] == json.loads(json.dumps(report.to_json()))
    assert told["asked"]["data"] == str(photos)
    rows = [dict(zip(told["columns"], row, strict=True)) for row in told["requests"]]
    assert len(rows) == report.sent
    assert {row["outcome"] for row in rows} <= set(OUTCOMES)
    assert {told["pictures"][row["picture"]].split("/")[0] for row in rows} == {row["truth"] for row in rows}


def test_what_fit_holds_out_is_sent(server, photos):
    held_out = open_data(str(photos)).splits["test"].images
    names = {held_out.name(index) for index in range(len(held_out))}
    pictures = load_pictures.labelled_pictures(str(photos), ("dark", "light"), 100, seed=0, progress=lambda event: None)
    assert set(pictures.names) == names
    assert "has no test split" in pictures.notes[0]


def test_a_given_test_split_is_sent(tmp_path):
    write_photos(tmp_path / "train", {"dark": 3, "light": 3})
    write_photos(tmp_path / "test", {"dark": 2, "light": 2}, seed=1)
    (tmp_path / "test" / "dark" / "0.png").write_bytes(b"no image")
    pictures = load_pictures.labelled_pictures(
        str(tmp_path), ("dark", "light"), 100, seed=0, progress=lambda event: None
    )
    assert sorted(pictures.names) == ["test/dark/1.png", "test/light/0.png", "test/light/1.png"]
    assert sorted(pictures.labels) == ["dark", "light", "light"]
    assert pictures.notes == (f"1 of 4 pictures of {tmp_path} are damaged and were not sent.",)


class Pixels:
    """A format without files: two pictures, held as pixels."""

    name = summary = "pixels"

    def opens(self, source):
        return source == "pixels"

    def read(self, source):
        pixels = [np.full((8, 8, 3), value, dtype=np.uint8) for value in (10, 240)]
        return Found({"test": Labelled(ArrayImages(pixels, ["a", "b"]), ["dark", "light"])})


def test_pixels_become_png(server, monkeypatch):
    monkeypatch.setattr(load_pictures, "FORMATS", (Pixels(),))
    report = loadtest(server.url, data="pixels", seed=1, **BRIEF)
    assert report.accuracy.value == 1.0
    assert all(body.startswith(b"\x89PNG") for _, body in server.heard)


def test_images_without_labels(server, photos):
    report = loadtest(server.url, images=f"{photos}/dark/*.png", slo="4s", **BRIEF)
    assert (report.slo_ms, report.inside, report.accuracy) == (4000, 1.0, None)
    assert {body for _, body in server.heard} <= {path.read_bytes() for path in (photos / "dark").iterdir()}


def test_pictures_are_made_up_where_none_are_given(server):
    report = loadtest(server.url, shape="bursts", **BRIEF)
    assert "The pictures were made up" in report.notes[-1]
    assert Image.open(io.BytesIO(server.heard[0][1])).size == (8, 8)


def test_pictures_are_held_up_to_a_size(photos, monkeypatch):
    monkeypatch.setattr(load_pictures, "MOST_BYTES", 500)
    pictures = load_pictures.unlabelled_pictures(str(photos), 40, seed=0, progress=lambda event: None)
    assert len(pictures.contents) < 40
    assert pictures.notes == (f"{len(pictures.contents)} of 40 pictures are held in memory and sent again.",)


def test_it_waits_until_the_server_is_ready(server):
    server.ready, events = [503, 503, 200], []
    assert loadtest(server.url, progress=events.append, **BRIEF).outcomes["answered"]
    assert [event.message for event in events].count(f"{server.url} is not ready yet") == 1


def test_ctrl_c_reports_what_was_sent(server):
    def answer(body):
        if len(server.heard) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return prediction()

    server.answer = answer
    report = loadtest(server.url, rate=10, duration="10m")
    assert 3 <= report.sent < 100
    assert f"It was stopped after {report.sent} of " in " ".join(report.notes)


def test_ctrl_c_before_anything_was_sent(server, monkeypatch):
    monkeypatch.setattr(module, "fire_and_wait", lambda *_, **__: [])
    with pytest.raises(Interrupted, match="stopped before anything was sent"):
        loadtest(server.url)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "localhost:8000"}, "'localhost:8000' is not the address of a server. Write it like http://127"),
        ({"url": "http://127.0.0.1:port"}, "is not the address of a server"),
        ({"url": "http://127.0.0.1:8000/?a=b"}, "is not the address of a server"),
        ({"rate": 0}, "rate is 0: it must be a finite number of requests a second"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"rate": 0.001, "duration": "1s"}, "none came within 1s: raise the rate or the duration"),
        ({"rate": 5000, "duration": "1h"}, "5000 requests a second for 1h are 18,000,000, above 1,000,000"),
        ({"duration": "soon"}, "cannot read the time 'soon'"),
        ({"shape": "burst"}, "unknown shape 'burst'. Did you mean 'bursts'?"),
        ({"deadline": "50"}, "deadline: 50 lacks a unit"),
        ({"slo": "0ms"}, "slo is 0ms: it must be a time above 0"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"out": "."}, "is a folder. Name a file"),
    ],
)
def test_values_outside_their_range(arguments, words):
    with pytest.raises(SettingError, match=words):
        loadtest(**{"url": f"http://127.0.0.1:{free_port()}", **arguments})


def test_a_server_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(module, "SECONDS_TO_BE_THERE", 0)
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(AnyViTError, match=f"{url} cannot be reached .*anyvit serve BUNDLE"):
        loadtest(url)


def test_a_server_that_is_none_of_ours(server, monkeypatch):
    with pytest.raises(AnyViTError, match="answers 404 to /readyz, so it is no server of `anyvit serve`"):
        loadtest(f"{server.url}/elsewhere")
    server.model = {}
    with pytest.raises(AnyViTError, match="answers 200 to /v1/model and does not name its classes"):
        loadtest(server.url)
    server.model = {"classes": ["a"], "slo_ms": None}
    with pytest.raises(SettingError, match="tells no objective of its own. Give one: slo 50ms"):
        loadtest(server.url)
    server.ready = [503]
    monkeypatch.setattr(module, "SECONDS_TO_BE_READY", 0)
    with pytest.raises(AnyViTError, match="is not ready after 0 s"):
        loadtest(server.url)


def test_classes_that_do_not_fit(server, photos):
    server.model["classes"] = ["dark", "bright"]
    with pytest.raises(DataError, match="does not know class light of .*. Its classes are dark, bright: rename"):
        loadtest(server.url, data=str(photos))


def test_data_that_do_not_open(server, photos, tmp_path):
    with pytest.raises(DataError, match="no/such/data does not exist. What opens: "):
        loadtest(server.url, data="no/such/data")
    with pytest.raises(DataError, match=r"no/such/\*.jpg matches no image"):
        loadtest(server.url, images="no/such/*.jpg")
    with pytest.raises(SettingError, match="data and images exclude each other"):
        loadtest(server.url, data=str(photos), images=str(photos))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 1 pictures of .* can be read"):
        loadtest(server.url, images=str(tmp_path))


def test_without_aiohttp_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MissingExtraError, match=r"'anyvit\[serve\]'"):
        loadtest("http://127.0.0.1:8000")
