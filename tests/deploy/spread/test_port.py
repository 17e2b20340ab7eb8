"""The port of a worker: whatever comes in, it stays up, answers others, and says what was wrong in a named status."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading

import pytest
import torch

pytest.importorskip("grpc", reason="needs the extra spread")

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anyvit.deploy.spread.parts import Part
from anyvit.deploy.spread.refusal import Refusal, Status
from anyvit.deploy.spread.security import PLAIN, Security
from anyvit.deploy.spread.transports import Place, open_transport
from anyvit.deploy.spread.transports.grpc import ANSWER, AUTHORIZATION, SCHEME, SERVICE
from anyvit.deploy.spread.transports.grpc_server import BoardServer, Limits
from anyvit.deploy.spread.wire import Kind, Message
from anyvit.deploy.spread.worker import Card, Worker
from anyvit.errors import SettingError
from tests.deploy.spread.fleet import PREPROCESSING, model, pictures

TOKEN = Security(token="a-token")
LIMITS = Limits(message=20_000, calls=6, queue=4, patience=0.5)


@pytest.fixture(scope="module")
def part():
    return Part.of_groups("board-1", model(), (0, 2), trunk="boards", preprocessing=PREPROCESSING)


@contextlib.contextmanager
def served(worker, security=PLAIN, limits=LIMITS):
    server = BoardServer(worker, "127.0.0.1:0", security=security, limits=limits)
    try:
        yield server.port
    finally:
        server.stop(grace=0)


@contextlib.contextmanager
def linked(port, security=PLAIN):
    link = open_transport("grpc", security).connect(Place("board-1", f"127.0.0.1:{port}", None))
    try:
        yield link
    finally:
        link.close()


@pytest.fixture(scope="module")
def port(part):
    with served(Worker(part), TOKEN) as port:
        yield port


@pytest.fixture
def link(port):
    with linked(port, TOKEN) as link:
        yield link


def question(part, pixels):
    return Message(1, Kind.IMAGES, part.hash, pixels).to_bytes()


def refusal(asked):
    error = asked.exception(timeout=20)
    assert isinstance(error, Refusal)
    return error


def is_well(link, part):
    answer = Message.from_bytes(link.ask(question(part, pictures(2)), 20).result())
    return answer.tensor.shape == (2, 2, 32)


def refused_questions(part):
    whole = question(part, pictures(1))
    nan = Message(1, Kind.TOKENS, part.hash, torch.full((1, 2, 3), float("nan"))).to_bytes()
    yield "nothing", b"", Status.INVALID_ARGUMENT
    yield "random bytes", os.urandom(500), Status.INVALID_ARGUMENT
    yield "random bytes after the magic word", b"AVIT\1\0" + os.urandom(500), Status.DATA_LOSS
    yield "cut short", whole[:-5], Status.INVALID_ARGUMENT
    yield "flipped", whole[:-1] + bytes([whole[-1] ^ 4]), Status.DATA_LOSS
    yield "another version", whole[:4] + b"\2\0" + whole[6:], Status.FAILED_PRECONDITION
    yield "not finite", nan, Status.INVALID_ARGUMENT
    yield "wrong type", Message(1, Kind.TOKENS, part.hash, torch.ones(1, 2, 3)).to_bytes(), Status.INVALID_ARGUMENT
    yield "wrong shape", question(part, pictures(1)[..., :4]), Status.INVALID_ARGUMENT
    yield "other weights", Message(1, Kind.IMAGES, "0" * 64, pictures(1)).to_bytes(), Status.FAILED_PRECONDITION
    yield "too large", question(part, pictures(200)), Status.RESOURCE_EXHAUSTED


def test_each_refusal_is_a_named_status(link, part):
    for name, content, status in refused_questions(part):
        assert refusal(link.ask(content, 20)).status is status, name
        assert is_well(link, part), name


def test_a_card_says_what_the_board_holds(link, part):
    card = Card.from_bytes(link.hello(20).result())
    assert (card.board, card.weights) == ("board-1", part.hash)


@pytest.mark.parametrize("security", [PLAIN, Security(token="a-toke"), Security(token="another")])
def test_a_missing_or_wrong_token_is_refused(port, part, security):
    with linked(port, security) as stranger:
        for asked in (
            stranger.hello(20),
            stranger.ask(question(part, pictures(1)), 20),
            stranger.ask(b"x" * 30_000, 20),
        ):
            assert refusal(asked).status is Status.UNAUTHENTICATED


def test_bytes_that_are_no_grpc(port, link, part):
    for content in (
        os.urandom(4000),
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(4000),
    ):
        with socket.create_connection(("127.0.0.1", port)) as stranger, contextlib.suppress(OSError):
            stranger.sendall(content)
        assert is_well(link, part)


def test_unknown_methods_are_unimplemented(port):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert channel.unary_unary(f"/{SERVICE}/Other").future(b"").code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_is_there_for_whoever_watches(port):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert check.status == health_pb2.HealthCheckResponse.SERVING


def test_slow_clients_are_told_so_and_block_nobody(port, link, part):
    go_on = threading.Event()

    def never():
        go_on.wait(20)
        yield b""

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        metadata = ((AUTHORIZATION, SCHEME + TOKEN.token),)
        slow = [channel.stream_unary(ANSWER).future(never(), metadata=metadata) for _ in range(LIMITS.queue)]
        assert is_well(link, part)
        assert {call.code() for call in slow} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        go_on.set()
    assert is_well(link, part)


def test_more_questions_than_wait_are_refused_and_the_others_answered(part):
    go_on = threading.Event()

    class Slow(Worker):
        def answer(self, content):
            go_on.wait(20)
            return super().answer(content)

    with served(Slow(part)) as port, linked(port) as one, linked(port) as other:
        asked = [link.ask(question(part, pictures(1)), 20) for link in (one, other) for _ in range(LIMITS.queue)]
        refused = [future for future in asked if _fails_at_once(future)]
        go_on.set()
        assert {refusal(future).status for future in refused} == {Status.RESOURCE_EXHAUSTED}
        answered = [future for future in asked if future not in refused]
        assert len(answered) == LIMITS.queue
        assert all(future.exception(timeout=20) is None for future in answered)


def _fails_at_once(future):
    try:
        return future.exception(timeout=0.5) is not None
    except TimeoutError:
        return False


def test_a_fault_of_the_worker_is_internal_and_not_its_end(part, caplog):
    class Broken(Worker):
        def answer(self, content):
            return 1 / 0

    with served(Broken(part)) as port, linked(port) as link:
        assert refusal(link.ask(b"", 20)).status is Status.INTERNAL
        assert Card.from_bytes(link.hello(20).result()).board == "board-1"
    assert "a question was not answered" in caplog.text


def test_a_taken_address_and_an_open_one_are_refused(port, part):
    with pytest.raises(SettingError, match="the address is taken"):
        BoardServer(Worker(part), f"127.0.0.1:{port}")
    with pytest.raises(
        SettingError, match=r"lets anybody in the network ask this worker. Give hub and workers a token"
    ):
        BoardServer(Worker(part), "0.0.0.0:0")
    with pytest.raises(SettingError, match="name tls_cert and tls_key too"):
        BoardServer(Worker(part), "127.0.0.1:0", security=Security(authority=b"x"))
    for address in ("7002", "host:", ":7002", "host:x", "host:70000", "::1:7002"):
        with pytest.raises(SettingError, match="is not host:port"):
            BoardServer(Worker(part), address)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate for 127.0.0.1 that signs itself."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=board"
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)
    return {"tls_cert": str(folder / "cert.pem"), "tls_key": str(folder / "key.pem")}


def test_tls_both_ways(part, certificate, monkeypatch):
    monkeypatch.delenv("ANYVIT_TOKEN", raising=False)
    ours = certificate["tls_cert"]
    board = Security.from_files(**certificate, tls_ca=ours)
    with served(Worker(part), board) as port:
        with linked(port, board) as hub:
            assert is_well(hub, part)
        for stranger in (PLAIN, Security.from_files(tls_ca=ours)):
            with linked(port, stranger) as link:
                assert refusal(link.hello(5)).status in {Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED}
    one_way, hubs = Security.from_files(**certificate), Security.from_files(tls_ca=ours)
    with served(Worker(part), one_way) as port, linked(port, hubs) as hub:
        assert is_well(hub, part)


def test_what_is_wrong_with_tokens_and_certificates_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYVIT_TOKEN", "from-the-environment")
    assert Security.from_files().token == "from-the-environment"
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    assert Security.from_files(token_file=str(file)).token == "from-a-file"
    for content in ("", "two words", "not ascii: ü"):
        file.write_text(content)
        with pytest.raises(SettingError, match="must be one word of printable ASCII"):
            Security.from_files(token_file=str(file))
    with pytest.raises(SettingError, match="cannot be read"):
        Security.from_files(token_file=str(tmp_path / "none"))
    with pytest.raises(SettingError, match="belong together"):
        Security.from_files(tls_cert=str(file))
