"""`anyvit loadtest` from what is typed to what is shown."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("aiohttp", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("starlette", reason="needs the extra serve")

from anyvit.cli import app
from tests.deploy.stub_server import Stub, prediction, serving


@pytest.fixture(scope="module")
def server():
    with serving(Stub()) as stub:
        yield stub


def run(*words):
    shown = CliRunner().invoke(app, ["loadtest", *map(str, words), "--rate", "100", "--duration", "0.3s"])
    assert shown.exit_code == 0, shown.output
    return shown.stdout


def test_what_is_shown(server, photos, tmp_path):
    answers = [prediction("dark"), (422, {"type": "unreadable_image"}), (429, {"type": "overloaded"})]
    server.answer = lambda body: answers.pop(0) if len(answers) > 1 else answers[0]
    shown = run(server.url, "--data", photos, "--out", tmp_path / "load.json")
    for words in ("asked ", " requests a second", "within 5000 ms  ", "accuracy ", " of what was answered"):
        assert words in shown
    for words in ("right in time ", "latency ", "p50 ", "sender lag ", "causes: unreadable_image (1)", "full-torch"):
        assert words in shown
    assert "has no test split" in shown
    assert "load.json holds all of it" in shown.replace("\n", "")


def test_json(server):
    server.reset()
    told = json.loads(run(server.url, "--json"))
    assert told["sent"] == told["outcomes"]["answered"]


def test_when_nothing_is_answered(server):
    server.answer = lambda body: (503, {"type": "not_ready"})
    shown = run(server.url)
    assert "not ready" in shown
    assert "latency" not in shown
