"""Replicas of the server on a Ray cluster of this machine, and what is there without one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import anyvit
from anyvit.deploy.serving.on_ray.options import placement_of, scale_of, scaling
from anyvit.errors import BudgetError, MissingExtraError, SettingError
from anyvit.jobs import serve as job
from tests.deploy.serving.over_http import Client, blank, encoded, form, picture

from tests.deploy.serving.over_http import FORM  # isort: skip

PATIENCE_S = 300.0
"""Processes that import PyTorch start one after the other, on a machine that may be busy."""

REPLICA, ENGINE = "ray::ServeReplica:anyvit", "anyvit.deploy.serving.engine"


@pytest.mark.parametrize(("replicas", "scale"), [("2", (2, 2)), ("1-4", (1, 4)), (" 2 - 2 ", (2, 2))])
def test_replicas_are_a_number_or_a_range(replicas, scale):
    assert scale_of(replicas) == scale


@pytest.mark.parametrize("replicas", ["", "0", "0-3", "4-1", "-1", "1.5", "two", "1-2-3", "1,2"])
def test_other_replicas_are_refused(replicas):
    with pytest.raises(SettingError, match=re.escape(f"replicas is {replicas!r}: write how many, 2,")):
        scale_of(replicas)


def test_a_range_follows_the_requests_under_way():
    assert scaling(2, 2) == {"num_replicas": 2}
    options = scaling(1, 4)["autoscaling_config"]
    assert (options["min_replicas"], options["max_replicas"], options["target_ongoing_requests"]) == (1, 4, 4.0)


@pytest.mark.parametrize(
    ("placement", "options"),
    [
        (None, {"num_cpus": 0.0, "num_gpus": 0.0, "resources": {}}),
        ("num_cpus=1.5, num_gpus=0.5", {"num_cpus": 1.5, "num_gpus": 0.5, "resources": {}}),
        (
            "board=1,num_cpus=2, node_a = 0.01",
            {"num_cpus": 2, "num_gpus": 0, "resources": {"board": 1, "node_a": 0.01}},
        ),
    ],
)
def test_placement_is_what_a_replica_takes(placement, options):
    assert placement_of(placement) == options


@pytest.mark.parametrize(
    "part", ["", "board", "board=x", "board=-1", "num_gpus=1.5", "GPU=1", "memory=1", "=1", "a b=1"]
)
def test_other_placements_are_refused(part):
    with pytest.raises(SettingError, match=re.escape(f"placement has {part!r}: ")):
        placement_of(f"num_cpus=1,{part}")


def test_a_resource_is_named_once():
    with pytest.raises(SettingError, match="placement has 'board=2': "):
        placement_of("board=1, board=2")


def test_without_ray_the_extra_is_named(tiny_bundle, monkeypatch):
    def missing(name):
        if name.startswith("ray"):
            raise ModuleNotFoundError(name="ray")

    monkeypatch.setattr(job, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"ray is not installed. .* 'anyvit\[ray\]'"):
        anyvit.serve(str(tiny_bundle.folder), ray=True)


def test_what_is_rays_needs_ray(tiny_bundle):
    with pytest.raises(SettingError, match="add --ray"):
        anyvit.serve(str(tiny_bundle.folder), replicas="2")


def door(app):
    from anyvit.deploy.serving.on_ray.proxy import Door

    return Door(app, objective=10.0)


async def asked(door, path="/v1/predict", headers=()):
    """What a client gets through a door: status, headers and body."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await door({"type": "http", "path": path, "headers": headers}, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent)


def through_proxy(app, path="/v1/predict"):
    return asyncio.run(asked(door(app), path))


def saying(status, kind, body):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body})

    return app


async def silent(scope, receive, send):
    """An application whose replica is gone."""


@pytest.mark.parametrize("status", [200, 400, 429, 503])
def test_what_a_replica_answers_passes_unchanged(status):
    headers = {"content-type": "application/json; charset=utf-8"}
    app = saying(status, headers["content-type"].encode(), b"{}")
    assert through_proxy(app) == (status, headers, b"{}")
    assert through_proxy(saying(200, b"text/html", b"<p>"), "/") == (200, {"content-type": "text/html"}, b"<p>")


@pytest.mark.parametrize(
    ("app", "status", "type"),
    [
        (silent, 503, "not_ready"),
        (saying(404, b"text/plain", b"no path"), 503, "not_ready"),
        (saying(503, b"text/plain", b"unavailable"), 503, "not_ready"),
        (saying(429, b"text/plain", b"dropped"), 429, "overloaded"),
        (saying(408, b"text/plain", b"timed out"), 504, "deadline_exceeded"),
    ],
)
def test_what_the_proxy_says_itself_becomes_json(app, status, type):
    said, headers, body = through_proxy(app)
    assert (said, json.loads(body)["type"]) == (status, type)
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(body))
    assert ("retry-after" in headers) == (status != 504)


def test_where_no_replica_is_nobody_waits(monkeypatch):
    from anyvit.deploy.serving.on_ray import proxy

    monkeypatch.setattr(proxy.known, "replicas", 0)
    answering = saying(200, b"application/json", b"{}")
    assert through_proxy(answering)[0] == 503
    assert through_proxy(answering, "/-/healthz")[0] == 200


@pytest.mark.parametrize(
    ("headers", "overtaken", "meanwhile"),
    [((), False, 429), ((), True, 200), (((b"anyvit-deadline", b"60s"),), False, 200)],
    ids=["in Ray", "in a replica", "by its own wish"],
)
def test_who_waits_too_long_in_ray_keeps_others_out(monkeypatch, headers, overtaken, meanwhile):
    from anyvit.deploy.serving.on_ray import proxy

    async def play():
        now, caught_up = [0.0], asyncio.Event()
        monkeypatch.setattr(proxy, "monotonic", lambda: now[0])

        async def app(scope, receive, send):
            await receive()
            if scope["headers"] is headers:
                await caught_up.wait()
            await saying(200, b"application/json", b"{}")(scope, receive, send)

        async def status(path="/v1/predict"):
            return (await asked(around, path, headers=[]))[0]

        around = door(app)
        first = asyncio.create_task(asked(around, headers=headers))
        await asyncio.sleep(0)
        if overtaken:
            assert await status() == 200
        now[0] = 11.0
        statuses = [await status(), await status("/v1/load")]
        caught_up.set()
        return [*statuses, (await first)[0], await status()]

    assert asyncio.run(asyncio.wait_for(play(), 60)) == [meanwhile, 200, 200, 200]


def test_requests_go_to_replicas_that_can_answer():
    pytest.importorskip("ray.serve", reason="needs the extra ray")
    from anyvit.deploy.serving.on_ray.router import ReadyRouter

    def chosen(*ready):
        replicas = [SimpleNamespace(routing_stats={} if each is None else {"ready": each}) for each in ready]
        [group] = asyncio.run(ReadyRouter.choose_replicas(SimpleNamespace(), replicas))
        return [replicas.index(each) for each in group]

    assert chosen(False, True) == [1]
    assert sorted(chosen(True, False, None)) == [0, 2]
    assert chosen(False) == [0]


def test_reason_of_a_replica_is_the_reason(monkeypatch):
    pytest.importorskip("ray.serve", reason="needs the extra ray")
    from anyvit.deploy.serving.on_ray import deployment

    message = "failed to start. Error:\nTraceback:\nanyvit.errors.BudgetError: --slo 1ms cannot be kept here.\n\n"
    deployments = {"Replica": SimpleNamespace(message=message)}
    status = SimpleNamespace(applications={"anyvit": SimpleNamespace(deployments=deployments)})
    monkeypatch.setattr(deployment.serve, "status", lambda: status)
    error = deployment._told_by_replica(RuntimeError("Failed to update the deployments"))
    assert isinstance(error, BudgetError)
    assert str(error) == "--slo 1ms cannot be kept here."


@pytest.mark.slow
def test_settings_that_were_sent_serve_a_placed_folder(tmp_path):
    pytest.importorskip("grpc", reason="needs the extra spread")
    from anyvit.deploy.serving.settings import Settings
    from tests.deploy.spread.fleet import fleet, logits_of, pictures

    async def answer(settings, image):
        service = settings.service()
        service.start()
        try:
            while not service.ready:
                assert service.failure is None
                await asyncio.sleep(0.05)
            [said] = await service.answer([image])
            return said.probabilities
        finally:
            await service.stop()

    pixels = pictures(1)
    with fleet(tmp_path / "placed", 2) as running:
        sent = json.dumps(Settings(str(running.placed.folder), 30.0).to_json())
        image = encoded(Image.fromarray(pixels[0].permute(1, 2, 0).numpy()))
        probabilities = asyncio.run(answer(Settings.from_json(json.loads(sent)), image))
    torch.testing.assert_close(probabilities, logits_of(pixels).softmax(-1)[0], rtol=0, atol=1e-5)


class OnRay(Client):
    """A client of two replicas, which a command has deployed; what it printed is in `log`."""

    def __init__(self, process, log):
        super().__init__(0, None, None, None)
        self.process, self.log = process, log
        self.wait(lambda: self.said("Ctrl-C ends"))
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+) ", log.read_text())[1])
        self.wait(lambda: self.said("2 replicas ready"))

    def said(self, words):
        """How often the command has said something."""
        return self.log.read_text().count(words)

    def wait(self, true):
        end = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < end, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)

    def both_answer(self):
        """Whether requests go to two replicas."""
        lines = {line for _ in range(10) for line in self.ask("/metrics").body.decode().splitlines()}
        return sum(line.startswith("anyvit_server_info") for line in lines) == 2

    def processes(self, words="", under=None):
        """Processes that the command has started, itself or through others, with words of their command lines."""
        listed = subprocess.run(
            ["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()]
        found = {str(under or self.process.pid)}
        while more := {pid for pid, parent, *_ in rows if parent in found} - found:
            found |= more
        return [int(pid) for pid, _, *command in rows if pid in found and words in " ".join(command)]

    def upload(self, image, *, missing=1):
        """A request that lacks its last bytes."""
        head = (
            f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
        )
        return self.raw(head.encode(), image[:-missing])

    @contextmanager
    def load(self, threads=2, pause=0.2):
        """What is answered meanwhile, to several clients that ask again and again."""
        end, answers = threading.Event(), []

        def ask():
            while not end.wait(pause):
                answers.append(self.predict(picture()))

        with ThreadPoolExecutor(threads) as pool:
            asking = [pool.submit(ask) for _ in range(threads)]
            try:
                yield answers
            finally:
                end.set()
        for each in asking:
            each.result()  # nobody was left without an answer


@pytest.fixture(scope="module")
def replicas(tiny_bundle, tmp_path_factory):
    pytest.importorskip("ray.serve", reason="needs the extra ray")
    log = tmp_path_factory.mktemp("ray") / "log.txt"
    command = [sys.executable, "-m", "anyvit", "serve", str(tiny_bundle.folder), "--ray", "--port", "0"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}  # whatever else runs on this machine
    with log.open("w") as file:
        arguments = ["--replicas", "2", "--slo", "10s"]
        process = subprocess.Popen([*command, *arguments], stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        yield OnRay(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def status_of(connection):
    content = connection.recv(65536)
    while len(content.partition(b"\r\n\r\n")[2]) < int(re.search(rb"(?i)content-length: (\d+)", content)[1]):
        content += connection.recv(65536)
    json.loads(content.partition(b"\r\n\r\n")[2])
    return int(content.split()[1])


def see_clean(answers):
    """Each is an answer, or says in JSON why there is none: nobody to ask, or too late once there was somebody."""
    assert answers
    for answer in answers:
        if answer.status == 200:
            assert answer.json["predictions"][0]["label"] is not None
        else:
            assert (answer.status, answer.json["type"]) in {(503, "not_ready"), (504, "deadline_exceeded")}
            assert set(answer.json) == {"type", "message", "hint"}
            assert ("Retry-After" in answer.headers) == (answer.status == 503)


@pytest.mark.slow
def test_replicas_answer_as_the_bundle(replicas, tiny_bundle):
    predictor = anyvit.load(str(tiny_bundle.folder))
    images = [picture(index) for index in range(8)]
    for image, expected in zip(images, predictor.predict(images, top_k=10), strict=True):
        [said] = replicas.predict(image, "top_k=10").json["predictions"]
        assert said["candidate"] == "full-torch"
        assert dict(said["top"]) == pytest.approx(dict(expected.top), abs=1e-5)
    assert len(replicas.processes(REPLICA)) == len(replicas.processes(ENGINE)) == 2


@pytest.mark.slow
def test_errors_are_those_of_the_server(replicas):
    assert (replicas.predict(b"x").status, replicas.predict(b"x").json["type"]) == (422, "unreadable_image")
    assert replicas.ask("/nothing").json["type"] == "not_found"
    late = replicas.predict(picture(), Anyvit_Deadline="1us")
    assert (late.status, late.json["type"]) == (504, "deadline_exceeded")


@pytest.mark.slow
def test_who_leaves_is_not_computed_for(replicas):
    body = form(*(("image", f"{number}.png", blank(6000, 6000)) for number in range(32)))
    head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
    with replicas.raw(head.encode(), body):
        time.sleep(1.0)
    replicas.wait(lambda: replicas.count('images_total{outcome="left"}') > 0)


@pytest.mark.slow
def test_a_killed_engine_is_gone_round(replicas):
    gone = replicas.processes(ENGINE)[0]
    with replicas.load() as answers:
        os.kill(gone, signal.SIGKILL)
        replicas.wait(lambda: gone not in replicas.processes(ENGINE))
        time.sleep(3.0)  # until the proxy knows
        replicas.wait(replicas.both_answer)
    see_clean(answers)
    assert any(answer.status == 200 for answer in answers)  # how many, the machine decides
    assert len(replicas.processes(REPLICA)) == 2


@pytest.mark.slow
def test_a_killed_replica_comes_back(replicas):
    [gone, _] = replicas.processes(REPLICA)
    engine = replicas.processes(ENGINE, under=gone)
    ready = replicas.said("2 replicas ready")
    with replicas.load() as answers, ExitStack() as open_requests:
        begun = [open_requests.enter_context(replicas.upload(picture())) for _ in range(12)]
        time.sleep(1.0)
        os.kill(gone, signal.SIGKILL)
        time.sleep(1.0)
        for connection in begun:
            connection.sendall(picture()[-1:])
        statuses = Counter(map(status_of, begun))
        replicas.wait(lambda: replicas.said("2 replicas ready") > ready)
        replicas.wait(replicas.both_answer)
    see_clean(answers)
    assert set(statuses) <= {200, 503}  # about half of them were in the replica that was killed
    assert statuses[200]
    assert replicas.said("1 replica ready")
    assert gone not in replicas.processes(REPLICA)
    assert not set(engine) & set(replicas.processes(ENGINE))


@pytest.mark.slow
def test_sigterm_lets_requests_finish_and_leaves_nothing_behind(replicas):
    started = set(replicas.processes())
    with replicas.upload(picture()) as connection:
        time.sleep(1.0)
        replicas.process.send_signal(signal.SIGTERM)
        time.sleep(2.0)
        connection.sendall(picture()[-1:])
        assert status_of(connection) == 200
    assert replicas.process.wait(60) == 0
    assert replicas.said("serve    ended")
    end = time.monotonic() + 30
    while left := {pid for pid in started if os.path.exists(f"/proc/{pid}")}:
        assert time.monotonic() < end, left
        time.sleep(0.2)
