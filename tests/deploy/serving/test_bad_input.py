"""What the server says to who asks badly: one error, in JSON, and the next one is answered as ever."""

from __future__ import annotations

import base64
import json
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.deploy.serving.over_http import FORM, blank, form, picture

JSON = "application/json"
LIMITS = {"body": 2_000_000, "pixels": 100_000, "images": 8}
GOOD = picture()
TEXT = base64.b64encode(GOOD).decode()
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


@pytest.fixture(scope="module")
def client(serving):
    with serving(**LIMITS) as client:
        yield client
        client.see_at_rest()


@dataclass
class Bad:
    """A request that is wrong, and what is said to it."""

    name: str
    says: str
    body: bytes | str = GOOD
    type: str | None = "image/png"
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False


STATUS = {
    "bad_request": 400,
    "too_large": 413,
    "unsupported_media_type": 415,
    "unreadable_image": 422,
    "budget_not_met": 422,
    "deadline_exceeded": 504,
}


def claims(width, height):
    """A PNG of a few bytes that says it is as large as that."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def cut(kind):
    whole = picture(0, kind)
    return [Bad(f"{kind} cut at {at}", "unreadable_image", whole[:at]) for at in (3, 12, 30, len(whole) // 2)]


def json_of(name, body, says="bad_request"):
    return Bad(f"JSON: {name}", says, body if isinstance(body, bytes | str) else json.dumps(body), JSON)


def form_of(name, body, says="bad_request", type=FORM):
    return Bad(f"form: {name}", says, body, type)


def query(text, says="bad_request"):
    return Bad(f"query: {text[:40]}", says, query=text)


def deadline(text, says="bad_request"):
    return Bad(f"deadline: {text[:10]}", says, headers={"Anyvit-Deadline": text})


IMAGE = ("image", "a.png", GOOD)
TABLE = [
    Bad("nothing", "bad_request", b""),
    Bad("no image", "unreadable_image", b"no image at all"),
    Bad("zeros", "unreadable_image", bytes(5000)),
    Bad("a GIF", "unreadable_image", b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff;", "image/gif"),
    Bad("an SVG", "unreadable_image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
    *[bad for kind in KINDS for bad in cut(kind)],
    Bad("claims to be huge", "too_large", claims(40_000, 40_000)),
    Bad("claims to be beyond all", "too_large", claims(2**31 - 1, 2**31 - 1)),
    Bad("is huge", "too_large", blank(400, 300)),
    Bad("too many bytes", "too_large", bytes(LIMITS["body"] + 1)),
    Bad("too many bytes in chunks", "too_large", bytes(LIMITS["body"] + 1), chunked=True),
    Bad("too many bytes of JSON", "too_large", bytes(LIMITS["body"] + 1), JSON, chunked=True),
    Bad("too many bytes of a form", "too_large", form(("image", "a", bytes(LIMITS["body"] + 1))), FORM, chunked=True),
    *[
        Bad(f"content type {type}", "unsupported_media_type", type=type)
        for type in ("text/plain", "application/x-www-form-urlencoded", "multipart/mixed; boundary=x", "image", "", ";")
    ],
    Bad("no content type", "unsupported_media_type", type=None),
    json_of("nothing", b""),
    json_of("garbage", b"{]"),
    json_of("not UTF-8", b'{"image": "\xff\xfe"}'),
    json_of("NaN", '{"image": NaN}'),
    json_of("Infinity", '{"image": "", "top_k": Infinity}'),
    json_of("-Infinity", '{"top_k": -Infinity}'),
    json_of("nested lists", b'{"image": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    json_of("nested objects", b'{"image":' * 100_000 + b"1" + b"}" * 100_000),
    json_of("nested beside a comma", '{"image": "", "x": ' + "[" * 990 + "]" * 990 + "}"),
    json_of("a long number", '{"top_k": ' + "9" * 5000 + "}"),
    json_of("a list", [TEXT]),
    json_of("a text", "image"),
    json_of("null", b"null"),
    json_of("no image", {}),
    json_of("image is null", {"image": None}),
    json_of("image is a number", {"image": 7}),
    json_of("images is a text", {"images": TEXT}),
    json_of("images is null", {"images": None}),
    json_of("images is empty", {"images": []}),
    json_of("images of numbers", {"images": [TEXT, 1]}),
    json_of("images of lists", {"images": [[TEXT]]}),
    json_of("both", {"image": TEXT, "images": [TEXT]}),
    json_of("unknown key", {"image": TEXT, "topk": 2}),
    json_of("half a character in a key", '{"image": "", "\\ud800": 1}'),
    json_of("half a character", {"image": TEXT, "budget": "latency<=5\ud800"}),
    json_of("no base64", {"image": "no base64!"}),
    json_of("letters beyond ASCII", {"image": "ä" * 8}),
    json_of("base64 with gaps", {"image": TEXT[:8] + "\n" + TEXT[8:]}),
    json_of("base64 cut off", {"image": TEXT[:-1]}),
    json_of("image is empty", {"image": ""}),
    json_of("data URL of nothing", {"image": "data:image/png;base64"}),
    json_of("base64 of no image", {"image": base64.b64encode(b"no image").decode()}, "unreadable_image"),
    json_of("one huge among good ones", {"images": [TEXT, base64.b64encode(blank(400, 300)).decode()]}, "too_large"),
    json_of("none of several", {"images": ["AAAA", "AAAA"]}, "unreadable_image"),
    json_of("too many", {"images": 9 * [TEXT]}, "too_large"),
    json_of("10,000", {"images": 10_000 * [base64.b64encode(bytes(90)).decode()]}, "too_large"),
    json_of("a million objects", '{"image": [' + "{}," * 600_000 + "{}]}", "too_large"),
    *[json_of(f"top_k {k!r}", {"image": TEXT, "top_k": k}) for k in (0, -1, 1.0, 1e300, True, "x", "", "-1", [1], {})],
    *[json_of(f"budget {b!r}", {"image": TEXT, "budget": b}) for b in (5, True, [], {}, "fast", "latency<=5", ",")],
    json_of("a long budget", {"image": TEXT, "budget": "a" + " " * 1_000_000 + "!"}),
    json_of("a long amount", {"image": TEXT, "budget": "latency<=" + "9" * 5000 + "ms"}),
    json_of("budget that none meets", {"image": TEXT, "budget": "latency<=1ns"}, "budget_not_met"),
    form_of("nothing", b""),
    form_of("garbage", b"garbage"),
    form_of("no boundary", form(IMAGE), type="multipart/form-data"),
    form_of("empty boundary", form(IMAGE), type="multipart/form-data; boundary="),
    form_of("long boundary", form(IMAGE), type="multipart/form-data; boundary=" + "x" * 3000),
    form_of("another boundary", form(IMAGE), type="multipart/form-data; boundary=another"),
    form_of("only its end", b"--frontier--\r\n"),
    form_of("cut in a header", form(IMAGE)[:40]),
    form_of("cut in an image", form(IMAGE)[:120]),
    form_of("cut after an image", form(IMAGE, end=False)),
    form_of("cut in the second image", form(IMAGE, IMAGE)[:-50]),
    form_of("no disposition", b"--frontier\r\nContent-Type: image/png\r\n\r\nx\r\n--frontier--\r\n"),
    form_of("no name", b"--frontier\r\nContent-Disposition: form-data\r\n\r\nx\r\n--frontier--\r\n"),
    form_of("broken header", b"--frontier\r\nContent Disposition\x00: form-data\r\n\r\nx\r\n--frontier--\r\n"),
    form_of("endless header", b"--frontier\r\nX: " + b"x" * 1_000_000),
    form_of("endless headers", b"--frontier\r\n" + b"X: x\r\n" * 100_000),
    form_of("no parts", b"\r\n--frontier--\r\n"),
    form_of("no image", form(("top_k", None, "2"))),
    form_of("unknown part", form(IMAGE, ("picture", "a.png", GOOD))),
    form_of("unknown field", form(IMAGE, ("topk", None, "2"))),
    form_of("half a character", form(IMAGE, ("\\ud800", None, "2")), type=FORM + "; charset=unicode_escape"),
    form_of("charset that decodes nothing", form(IMAGE), type=FORM + "; charset=undefined"),
    form_of("image is no file", form(("image", None, "x"))),
    form_of("empty image", form(("image", "a.png", b""))),
    form_of("one empty image", form(IMAGE, ("image", "b.png", b""))),
    form_of("top_k is a file", form(IMAGE, ("top_k", "a.txt", b"2"))),
    form_of("bad top_k", form(IMAGE, ("top_k", None, "٢"))),
    form_of("bad budget", form(IMAGE, ("budget", None, "cheap"))),
    form_of("long field", form(IMAGE, ("budget", None, "x" * 1_500_000))),
    form_of("many fields", form(IMAGE, *[("top_k", None, "2") for _ in range(100)])),
    form_of("too many images", form(*9 * [IMAGE]), "too_large"),
    form_of("10,000 images", form(*[("image", "a", b"x") for _ in range(10_000)]), "too_large"),
    form_of("none can be read", form(("image", "\"'<b>", b"x"), ("image", "../etc/passwd", b"y")), "unreadable_image"),
    *[query(f"top_k={text}") for text in ("0", "-1", "1.5", "x", "", "%D9%A2", "9" * 5000)],
    *[query(f"budget={text}") for text in ("cheap", "macs%3E=5", "macs%3C=5,macs%3C=6", "%00", "%ff", "x" * 9000)],
    query("budget=latency%3C=1ns", "budget_not_met"),
    query("budget=accuracy%3E=0.99", "budget_not_met"),
    *[deadline(text) for text in ("", "soon", "30", "-5ms", "0ms", "nan", "inf", "1e999s", "1e-999s", "5ms,6ms")],
    deadline("9" * 5000 + "ms"),
    deadline("1ns", "deadline_exceeded"),
]  # fmt: skip


def see_problem(answer, status=None):
    """One error as they all are: JSON of three texts, and nothing that is nobody's business."""
    assert status in (None, answer.status)
    assert answer.headers["content-type"] == JSON
    assert list(answer.json) == ["type", "message", "hint"]
    assert all(isinstance(text, str) and text.strip() for text in answer.json.values())
    for secret in ("Traceback", "site-packages", "/tmp", "\\n  File", "at 0x", ".py"):
        assert secret not in answer.body.decode()
    assert len(answer.body) < 3000


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_bad_request_is_told_so_and_hurts_no_other(client, bad):
    with ThreadPoolExecutor(1) as aside:
        meanwhile = aside.submit(client.predict, GOOD)
        body = bad.body.encode() if isinstance(bad.body, str) else bad.body
        answer = client.ask(f"/v1/predict?{bad.query}", body, bad.type, chunked=bad.chunked, **bad.headers)
        see_problem(answer, STATUS[bad.says])
        assert answer.json["type"] == bad.says
        for good in (meanwhile.result(), client.predict(GOOD)):
            assert good.status == 200
            assert good.json["predictions"][0]["label"]
    client.see_at_rest()


def test_names_are_repeated_and_nothing_more(client):
    names = ["../../etc/passwd", "<script>", "a\\b", "é" * 300, "null", "\x01\x7f", "x\nSet-Cookie: a=1"]
    answer = client.ask(body=form(*(("image", name, GOOD) for name in names)), type=FORM)
    if answer.status == 200:
        assert [one["name"] for one in answer.json["predictions"]] == names
    else:
        see_problem(answer, 400)  # a name with a line break is no name
    assert "set-cookie" not in answer.headers
    answer = client.ask(body=form(*(("image", name, GOOD) for name in names[:-2])), type=FORM)
    assert [one["name"] for one in answer.json["predictions"]] == names[:-2]


def test_name_of_half_characters_is_answered(client):
    body = form(("image", "\\ud800.png", GOOD))
    answer = client.ask(body=body, type=FORM + "; charset=raw_unicode_escape")
    assert [one["name"] for one in answer.json["predictions"]] == ["?.png"]


def test_thin_image_is_answered_without_stretching_all_of_it(client):
    assert client.predict(blank(90_000, 1)).status == 200


TYPES = ("image/png", "application/octet-stream", JSON, FORM, 'multipart/form-data; boundary="', "text/plain", "")
PARTS = st.tuples(st.binary(max_size=60), st.binary(max_size=60))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9) | st.just(TEXT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["image", "images", "top_k"]), inner),
    max_leaves=8,
)
BODIES = st.one_of(
    st.tuples(st.sampled_from(TYPES), st.binary(max_size=200)),
    st.tuples(
        st.just(JSON),
        st.dictionaries(st.sampled_from(["image", "images", "top_k", "budget", "\ud800"]), VALUES)
        .map(json.dumps)
        .map(str.encode),
    ),
    st.tuples(
        st.just(FORM),
        st.lists(PARTS, max_size=3).map(
            lambda parts: (
                b"".join(
                    b"--frontier\r\nContent-Disposition: form-data; name=" + head + b"\r\n\r\n" + content + b"\r\n"
                    for head, content in parts
                )
                + b"--frontier--"
            )
        ),
    ),
    st.tuples(
        st.just(FORM),
        st.tuples(st.integers(0, 300), st.binary(max_size=4)).map(
            lambda change: form(IMAGE)[: change[0]] + change[1] + form(IMAGE)[change[0] + len(change[1]) :]
        ),
    ),
    st.tuples(
        st.just("image/png"),
        st.tuples(st.sampled_from(KINDS), st.integers(0, 400), st.binary(max_size=4)).map(
            lambda change: picture(0, change[0])[: change[1]] + change[2] + picture(0, change[0])[change[1] + 4 :]
        ),
    ),
)


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(BODIES)
def test_no_body_breaks_the_server(client, request_):
    type, body = request_
    answer = client.ask(body=body, type=type)
    if answer.status == 200:
        assert list(answer.json) == ["predictions", "total_ms"]
    else:
        assert 400 <= answer.status < 500
        see_problem(answer)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(type=st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=30))
def test_no_header_breaks_the_server(client, type):
    for prefix in ("", "multipart/form-data; ", "multipart/form-data; boundary=frontier; charset="):
        answer = client.ask(body=form(IMAGE), type=prefix + type, Anyvit_Deadline=type or " ")
        if answer.status != 200:
            assert 400 <= answer.status < 500
            see_problem(answer)


def test_slow_client_is_told_so_and_let_go(serving):
    with serving(seconds=0.5) as client:
        for head, trickle in (
            (b"Content-Length: 500\r\n\r\n", b"x"),
            (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        ):
            with client.raw(HEAD + head) as connection:
                connection.settimeout(0.05)
                heard = b""
                while not heard:
                    connection.sendall(trickle)
                    heard = _heard(connection)
                client.until(lambda connection=connection: _is_over(connection))
            head, _, body = heard.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ")
            assert b"connection: close" in head.lower()
            assert json.loads(body)["type"] == "slow_client"
        client.see_at_rest()
        assert client.predict(GOOD).status == 200


def _heard(connection):
    try:
        return connection.recv(65536)
    except TimeoutError:
        return b""


def _is_over(connection):
    try:
        return connection.recv(65536) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("sent", [0, 10], ids=["before the body", "within the body"])
def test_client_that_leaves_while_sending_leaves_nothing_behind(client, sent):
    before = _left(client)
    with client.raw(HEAD + b"Content-Length: 500\r\n\r\n", b"x" * sent) as connection:
        client.until(lambda: client.intake.held == sent)
    client.until(lambda: _left(client) == before + 1)
    client.see_at_rest()
    assert client.predict(GOOD).status == 200
    connection.close()


def test_client_may_leave_without_a_word(client):
    """A reset in the place of an end."""
    before = _left(client)
    with client.raw(HEAD + b"Content-Length: 500\r\n\r\nxxx") as connection:
        client.until(lambda: client.intake.held == 3)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.until(lambda: _left(client) == before + 1)
    client.see_at_rest()


def _left(client):
    return client.count('requests_total{status="499"}')


def test_body_that_is_not_wanted_need_not_be_sent(client):
    """With `Expect: 100-continue` a client hears before it sends."""
    length = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with client.raw(HEAD + length % (LIMITS["body"] + 1)) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    with client.raw(HEAD + length % len(GOOD)) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(GOOD)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_requests_together_hold_no_more_than_there_is_memory_for(serving):
    pixels = 3 * 8 * 8
    with serving(held=2 * len(GOOD) + 2 * pixels) as client, ThreadPoolExecutor(2) as pool:
        client.engine.closed = True
        held = [pool.submit(client.predict, GOOD) for _ in range(2)]
        client.until(lambda: client.intake.held == 2 * len(GOOD) + 2 * pixels)
        answer = client.predict(GOOD)
        see_problem(answer, 429)
        assert answer.json["type"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1
        client.engine.closed = False
        assert {each.result().status for each in held} == {200}
        client.see_at_rest()
        assert client.predict(GOOD).status == 200
