"""`serve` from its arguments to its end."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest

import anyvit
from anyvit.errors import BudgetError, BundleError, MissingExtraError, SettingError
from anyvit.jobs import serve as job
from tests.deploy.tiny import digits, write_tiny

for library in job.LIBRARIES:
    pytest.importorskip(library, reason="needs the extra serve")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"slo": "50"}, "slo: 50 lacks a unit"),
        ({"slo": "0ms"}, "slo is 0ms: it must be a finite amount above 0"),
        ({"slo": "soon"}, "'soon' is not an amount"),
        ({"candidates": "ful-torch"}, "unknown candidate 'ful-torch'. Did you mean 'full-torch'?"),
        ({"min_accuracy": "lots"}, "accuracy>=lots"),
        ({"memory": "-1GB"}, "memory is -1GB"),
        ({"max_images": 0}, "max_images is 0: it must be at least 1"),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"client_timeout": "0s"}, "client_timeout is 0s"),
        ({"replicas": "2"}, "--replicas and --placement are Ray's: add --ray"),
        ({"placement": "num_cpus=1"}, "--replicas and --placement are Ray's: add --ray"),
        ({"port": 70000}, "cannot serve at 127.0.0.1:70000"),
        ({"host": "192.0.2.1"}, "cannot serve at 192.0.2.1:8000"),
    ],
)
def test_wrong_values_are_named_with_the_remedy(bundle, arguments, words):
    with pytest.raises(SettingError, match=re.escape(words)):
        anyvit.serve(str(bundle.folder), **arguments)


def test_small_requests_do_not_leave_too_little_memory_for_their_pixels(bundle):
    limits = job._settings(str(bundle.folder), "50ms", None, None, None, "10kB", 10**6, 64, "1s").limits
    assert (limits.body, limits.held) == (10_000, 256_000_000)


def test_a_floor_that_no_candidate_reaches_is_refused(bundle):
    with pytest.raises(BudgetError, match=r"no candidate of .* has an accuracy of 99.0%: the best has 95.0%"):
        anyvit.serve(str(bundle.folder), min_accuracy="99%")


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="is no bundle"):
        anyvit.serve(str(tmp_path))


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(MissingExtraError, match=r"fastapi is not installed. .* 'anyvit\[serve\]'"):
        anyvit.serve("bundle")


class Running:
    """`anyvit serve` in a process of its own."""

    def __init__(self, folder, *options):
        command = [sys.executable, "-m", "anyvit", "serve", str(folder), "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines = []
        self._told = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._told.wait(120), self.lines

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if " at http://" in line:
                self.address = urlparse(re.search(r"http://\S+", line)[0]).netloc
                self._told.set()

    def ask(self, method, path, body=None, timeout=60, **headers):
        connection = http.client.HTTPConnection(self.address, timeout=timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def wait_until_ready(self):
        end = time.monotonic() + 240
        while self.ask("GET", "/readyz")[0] != 200:
            assert time.monotonic() < end, self.lines
            time.sleep(0.2)

    def engine(self):
        tasks = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        with open(tasks) as file:
            return int(file.read().split()[0])


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "digit.png"
    digits().splits["test"].images.load(3).save(path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc")
def test_a_server_answers_outlives_its_engine_and_drains(bundle, picture):
    """From start to SIGTERM, with an engine that is killed on the way: one test, as a start takes seconds."""
    running = Running(bundle.folder, "--slo", "30s", "--candidates", "full-torch")
    try:
        assert running.ask("GET", "/healthz")[0] == 200
        running.wait_until_ready()
        maps = Path(f"/proc/{running.process.pid}/maps").read_text()
        assert "/torch/" in maps
        assert "/scipy/" not in maps  # it comes with what trains, which takes seconds to load
        headers = {"Content-Type": "image/png"}
        status, answer = running.ask("POST", "/v1/predict", picture.read_bytes(), **headers)
        (expected,) = anyvit.load(bundle.folder).predict(picture)
        assert status == 200
        assert answer["predictions"][0]["label"] == expected.label
        assert answer["predictions"][0]["probability"] == pytest.approx(expected.probability, abs=1e-5)

        os.kill(running.engine(), signal.SIGKILL)
        time.sleep(0.5)
        running.wait_until_ready()
        assert running.ask("POST", "/v1/predict", picture.read_bytes(), **headers)[0] == 200

        os.kill(running.engine(), signal.SIGSTOP)  # a request is held up, and the server is asked to end meanwhile
        engine, outcome = running.engine(), []
        asking = threading.Thread(
            target=lambda: outcome.append(running.ask("POST", "/v1/predict", picture.read_bytes(), **headers))
        )
        asking.start()
        time.sleep(1.0)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        os.kill(engine, signal.SIGCONT)
        asking.join(60)
        assert outcome[0][0] == 200
        assert running.process.wait(60) == 0
        assert not os.path.exists(f"/proc/{engine}")
        assert any("ended" in line for line in running.lines)
    finally:
        running.process.kill()


@pytest.mark.slow
def test_an_objective_that_no_candidate_keeps_ends_with_its_reason(run, bundle):
    status, _, said = run("serve", bundle.folder, "--port", 0, "--slo", "10us")
    assert status == BudgetError.exit_code
    assert re.search(r"--slo 0.01ms cannot be kept here: the fastest candidate, \S+, needs", said)
