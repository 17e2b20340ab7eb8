"""What the server says over HTTP, to who asks well."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

import anyvit
from tests.deploy.serving import over_http
from tests.deploy.serving.over_http import FORM, Client, form, picture
from tests.deploy.tiny import RESULTS, write_tiny

from prometheus_client.parser import text_string_to_metric_families  # isort: skip

PREDICTION = ["name", "label", "probability", "top", "error", "candidate", "accuracy", "waited_ms", "computed_ms"]
BY_BUDGET = {
    "accuracy>=93%": "full-torch",
    "latency<=3.5ms, accuracy>=0.85": "heads3-torch",
    "latency<=2.5ms": "heads2-torch",
}


def text(image):
    return base64.b64encode(image).decode()


def as_form(image, **fields):
    return form(("image", "a.png", image), *((name, None, value) for name, value in fields.items())), FORM


def as_json(image, **fields):
    return json.dumps({"image": text(image), **fields}), "application/json"


WAYS = {
    "raw": lambda image: (image, "image/png"),
    "raw, another kind": lambda image: (image, "image/whatever; of=any"),
    "octets": lambda image: (image, "application/octet-stream"),
    "form": as_form,
    "form, images": lambda image: (form(("images", "a.png", image)), FORM),
    "JSON": as_json,
    "JSON, images": lambda image: (json.dumps({"images": [text(image)]}), "application/json; charset=utf-8"),
    "JSON, data URL": lambda image: (
        as_json(b"")
        and (
            json.dumps({"image": f"data:image/png;base64,{text(image)}"}),
            "application/json",
        )
    ),
}


@pytest.fixture(scope="module")
def predictor(tiny_bundle):
    return anyvit.load(str(tiny_bundle.folder))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("budget", "candidate"), BY_BUDGET.items(), ids=BY_BUDGET.values())
def test_answer_is_that_of_the_bundle(client, predictor, way, budget, candidate):
    (expected,) = predictor.predict(picture(3), budget=budget, top_k=4)
    body, type = way(picture(3))
    answer = client.ask(f"/v1/predict?top_k=4&budget={budget.replace('%', '%25').replace(' ', '+')}", body, type)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json) == ["predictions", "total_ms"]
    (found,) = answer.json["predictions"]
    assert list(found) == PREDICTION
    assert found["candidate"] == candidate
    assert found["accuracy"] == predictor.bundle.result(candidate).accuracy
    assert [name for name, _ in found["top"]] == [name for name, _ in expected.top]
    assert [p for _, p in found["top"]] == pytest.approx([p for _, p in expected.top], abs=1e-5)
    assert [found["label"], found["probability"]] == found["top"][0]
    assert found["error"] is None
    assert 0 <= found["waited_ms"] <= answer.json["total_ms"]
    assert found["computed_ms"] > 0


@pytest.mark.parametrize("way", [as_form, as_json], ids=["form", "JSON"])
def test_wishes_may_stand_in_the_body(client, way):
    answer = client.ask("/v1/predict", *way(picture(), top_k="3", budget="latency<=2.5ms"))
    (found,) = answer.json["predictions"]
    assert (len(found["top"]), found["candidate"]) == (3, "heads2-torch")
    (found,) = client.ask("/v1/predict?top_k=2", *way(picture(), top_k="3")).json["predictions"]
    assert len(found["top"]) == 2  # what stands in the address counts more


def test_wishes_that_are_null_are_none(client):
    (found,) = client.ask("/v1/predict", *as_json(picture(), top_k=None, budget=None)).json["predictions"]
    assert (len(found["top"]), found["candidate"]) == (1, "full-torch")


def test_more_classes_than_there_are(client):
    (found,) = client.predict(picture(), "top_k=999999999").json["predictions"]
    assert len(found["top"]) == 10


def test_every_image_of_a_request_is_answered_by_its_name(client, predictor):
    images = [picture(index, kind) for index, kind in enumerate(("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"))]
    names = ["a.png", "Ä é.jpg", "../c.webp", "", "d", "d"]
    answer = client.ask(
        body=form(*(("image", name, image) for name, image in zip(names, images, strict=True))), type=FORM
    )
    found = answer.json["predictions"]
    assert [one["name"] for one in found] == ["a.png", "Ä é.jpg", "../c.webp", "image 3", "d", "d"]
    for one, expected in zip(found, predictor.predict(images, budget="accuracy>=0.93"), strict=True):
        assert (one["candidate"], one["label"]) == ("full-torch", expected.label)
        assert one["probability"] == pytest.approx(expected.probability, abs=1e-5)
    answer = client.ask(body=json.dumps({"images": [text(image) for image in images]}), type="application/json")
    again = answer.json["predictions"]
    assert [one["name"] for one in again] == [f"image {place}" for place in range(6)]
    assert [one["label"] for one in again] == [one["label"] for one in found]


def test_unreadable_image_stops_no_other(client):
    parts = ("image", "good.png", picture()), ("image", "bad.jpg", b"no image"), ("image", "short.png", picture()[:60])
    answer = client.ask(body=form(*parts), type=FORM)
    assert answer.status == 200
    good, bad, short = answer.json["predictions"]
    assert good["error"] is None
    assert bad["error"] == "bad.jpg (not a JPEG, PNG, WebP, BMP, TIFF or PPM image)"
    assert short["error"].startswith("short.png (")
    for one in (bad, short):
        assert list(one) == PREDICTION
        assert one["top"] == []
        assert {one[key] for key in PREDICTION if key not in ("name", "top", "error")} == {None}


def test_many_ask_at_once(client):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(client.predict, [picture(index % 4) for index in range(48)]))
    assert {answer.status for answer in answers} == {200}
    for index, answer in enumerate(answers):
        assert answer.json["predictions"][0]["label"] == answers[index % 4].json["predictions"][0]["label"]


def test_a_body_may_come_in_chunks(client):
    assert client.ask(body=picture(), type="image/png", chunked=True).status == 200


def test_model_describes_itself(client, tiny_bundle):
    model = client.ask("/v1/model").json
    assert set(model) - {"min_accuracy"} == {
        "task", "classes", "preprocessing", "slo_ms", "measured_here", "device", "candidates"
    }  # fmt: skip
    assert model["task"] == "classification"
    assert model["classes"] == list(tiny_bundle.classes)
    assert model["preprocessing"] == tiny_bundle.preprocessing.to_json()
    assert (model["slo_ms"], model["measured_here"]) == (20_000, True)
    assert model["device"]
    assert [one["id"] for one in model["candidates"]] == [
        "full-torch", "full-torch-bfloat16", "heads3-torch", "heads2-torch"
    ]  # fmt: skip
    for one in model["candidates"]:
        assert list(one) == ["id", "accuracy", "costs", "served", "why", "batch_ms"]
        assert one["costs"] == tiny_bundle.result(one["id"]).costs
        assert one["served"] == (one["why"] is None) == bool(one["batch_ms"])
    assert model["candidates"][0]["batch_ms"] == {"1": 4, "2": 8, "4": 16, "8": 32}
    assert model["candidates"][1]["why"] == "not among the --candidates"


def test_model_tells_the_least_accuracy(client):
    assert client.ask("/v1/model").json["min_accuracy"] is None


def test_accuracy_that_is_not_known_is_not_made_up(tmp_path):
    results = [replace(result, accuracy=None).to_json() for result in RESULTS]
    with over_http.serving(write_tiny(tmp_path, candidates=results)) as client:
        assert {one["accuracy"] for one in client.ask("/v1/model").json["candidates"]} == {None}
        assert client.predict(picture()).json["predictions"][0]["accuracy"] is None


def test_load_tells_of_the_seconds_that_are_over(client):
    client.predict(picture(), "budget=latency<=2.5ms")
    client.until(lambda: sum(second["answered"] for second in client.ask("/v1/load").json["history"]))
    load = client.ask("/v1/load").json
    assert list(load) == ["slo_ms", "level", "queue", "ready", "history"]
    assert (load["slo_ms"], load["level"], load["queue"], load["ready"]) == (20_000, "full-torch", 0, True)
    at = [second["at"] for second in load["history"]]
    assert at == list(range(at[0], at[-1] + 1))
    for second in load["history"]:
        assert list(second) == [
            "at", "requests", "answered", "late", "shed", "failed", "p99_ms", "accuracy", "candidates"
        ]  # fmt: skip
        assert sum(second["candidates"].values()) == second["answered"] <= second["requests"]
        assert (second["p99_ms"] is None) == (second["accuracy"] is None) == (not second["answered"])


def test_health(client):
    assert client.ask("/healthz").json == {"status": "alive"}
    assert client.ask("/readyz").json == {"status": "ready"}


def counted(client: Client):
    families = list(text_string_to_metric_families(client.ask("/metrics").body.decode()))
    return {
        (sample.name.removeprefix("anyvit_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_add_up(serving):
    with serving() as client:
        for _ in range(3):
            client.predict(picture())
        client.ask(body=form(("image", "a", picture()), ("image", "b", b"none"), ("image", "c", picture())), type=FORM)
        client.predict(b"no image")
        client.predict(picture(), "top_k=no")
        client.predict(picture(), "budget=latency<=2.5ms")
        client.predict(picture(), Anyvit_Deadline="1us")
        client.ask("/v1/predict")
        client.ask("/v1/nothing")
        count = counted(client)
    assert {status: value for (name, status, *_), value in _with(count, "requests_total").items()} == {
        "200": 5, "400": 1, "422": 1, "504": 1
    }  # fmt: skip
    outcomes = {outcome: value for (_, outcome), value in _with(count, "images_total").items()}
    assert outcomes == {"answered": 6, "unreadable": 2, "expired": 1}
    assert _with(count, "answers_total") == {
        ("answers_total", "full-torch"): 5,
        ("answers_total", "heads3-torch"): 0,
        ("answers_total", "heads2-torch"): 1,
    }
    assert count["latency_seconds_count",] == 6
    assert count["batch_images_sum",] == 6
    assert count["level", "full-torch"] == 1
    assert count["queue_images",] == count["shed_images_total",] == count["engine_deaths_total",] == 0


def _with(count, name):
    return {labels: value for labels, value in count.items() if labels[0] == name}


def test_openapi_says_what_can_be_asked(client):
    api = client.ask("/openapi.json").json
    assert api["openapi"].startswith("3.1")
    assert set(api["paths"]) == {"/v1/predict", "/v1/model", "/v1/load", "/healthz", "/readyz", "/metrics"}
    predict = api["paths"]["/v1/predict"]["post"]
    bodies = predict["requestBody"]["content"]
    assert set(bodies) == {"image/*", "application/octet-stream", "multipart/form-data", "application/json"}
    assert {(one["in"], one["name"]) for one in predict["parameters"]} == {
        ("query", "top_k"), ("query", "budget"), ("header", "Anyvit-Deadline")
    }  # fmt: skip
    codes = {"200", "400", "408", "413", "415", "422", "429", "500", "503", "504"}
    assert set(predict["responses"]) == codes
    prediction = predict["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["predictions"]
    assert list(prediction["items"]["properties"]) == PREDICTION
    for code in codes - {"200"}:
        schema = predict["responses"][code]["content"]["application/json"]["schema"]
        assert set(schema["properties"]) == set(schema["required"]) == {"type", "message", "hint"}
    for code in ("429", "503"):
        assert set(predict["responses"][code]["headers"]) == {"Retry-After"}


@pytest.mark.parametrize("path", ["/", "/docs", "/page/page.js", "/page/docs.js", "/page/page.css"])
def test_pages_load_nothing_from_elsewhere(client, path):
    page = client.ask(path)
    assert page.status == 200
    assert page.body
    assert "default-src 'self'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("method", "path", "status", "type"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/page/../app.py", 404, "not_found"),
        ("GET", "/page/%2e%2e/app.py", 404, "not_found"),
        ("GET", "/%0d%0aSet-Cookie:x=1/%ff<script>", 404, "not_found"),
        ("GET", "/" + "x" * 5000, 404, "not_found"),
        ("GET", "/v1/predict", 405, "method_not_allowed"),
        ("PUT", "/v1/predict", 405, "method_not_allowed"),
        ("POST", "/v1/model", 405, "method_not_allowed"),
        ("DELETE", "/", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there_is_said_in_json(client, method, path, status, type):
    answer = client.ask(path, method=method)
    assert (answer.status, answer.json["type"]) == (status, type)
    assert set(answer.json) == {"type", "message", "hint"}
    assert "set-cookie" not in answer.headers
    assert len(answer.body) < 1000
    assert status == 404 or answer.headers["allow"]


def test_connection_is_kept(client):
    request = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    image = picture()
    with client.raw(2 * (request % len(image) + image)) as connection:
        heard = b""
        while heard.count(b'"total_ms"') < 2:
            heard += connection.recv(65536)
    assert heard.count(b"HTTP/1.1 200 OK") == 2
