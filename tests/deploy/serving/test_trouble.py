"""What the server says when it has too much to do, too little time, or an engine that fails."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.deploy.serving.over_http import FORM, GatedEngine, form, picture

GOOD = picture()
LONG = {"Anyvit_Deadline": "1min"}


@pytest.fixture
def client(serving):
    with serving() as client:
        yield client
        client.see_at_rest()
        client.until(lambda: client.ask("/readyz").status == 200)
        assert client.predict(GOOD).status == 200


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def occupied(client, pool):
    """The answer to an image that the engine computes until the test lets it go on."""
    return occupy(client, pool)


def occupy(client, pool):
    client.engine.closed = True
    answer = pool.submit(client.predict, GOOD, **LONG)
    client.until(lambda: client.engine.inside)
    return answer


def wait_behind(client, pool):
    waiting = len(client.service.controller.waiting)
    answer = pool.submit(client.predict, GOOD, **LONG)
    client.until(lambda: len(client.service.controller.waiting) > waiting)
    return answer


def see(answer, status, type):
    assert (answer.status, answer.json["type"]) == (status, type)
    assert list(answer.json) == ["type", "message", "hint"]
    if status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    else:
        assert "retry-after" not in answer.headers


def test_more_than_can_be_answered_in_time_is_turned_away(serving, tiny_bundle, pool):
    engine = GatedEngine(tiny_bundle, {"heads2-torch": 0.1})
    with serving(objective=10.0, engine=engine) as client:
        engine.seconds["heads2-torch"] = 1e-4  # it is as slow as was measured only in the eyes of the server
        engine.closed = True
        many = form(*64 * [("image", "a.png", GOOD)])
        first = pool.submit(client.ask, body=many, type=FORM)
        client.until(lambda: engine.inside)
        see(client.ask(body=many, type=FORM), 429, "overloaded")
        assert client.count("shed_images_total") == client.count('images_total{outcome="shed"}') == 64
        engine.closed = False
        assert first.result().status == 200
        assert sum(images for _, images in engine.asked) == 64
        client.see_at_rest()
        assert client.predict(GOOD).status == 200


def test_too_short_a_deadline_is_told_at_once(client):
    see(client.predict(GOOD, Anyvit_Deadline="100us"), 504, "deadline_exceeded")
    see(client.ask(body=form(*64 * [("image", "a", GOOD)]), type=FORM, Anyvit_Deadline="5ms"), 504, "deadline_exceeded")
    assert client.engine.asked == []
    assert client.count('images_total{outcome="expired"}') == 65


def test_image_that_waited_too_long_is_not_computed(client, pool, occupied):
    late = pool.submit(client.predict, GOOD, Anyvit_Deadline="300ms")
    patient = wait_behind(client, pool)
    time.sleep(0.5)
    client.engine.closed = False
    see(late.result(), 504, "deadline_exceeded")
    assert occupied.result().status == patient.result().status == 200
    assert sum(images for _, images in client.engine.asked) == 2


def test_without_a_deadline_the_objective_is_it(serving, pool):
    with serving(objective=0.3) as client:
        patient = occupy(client, pool)
        usual = pool.submit(client.predict, GOOD)
        time.sleep(0.5)
        client.engine.closed = False
        see(usual.result(), 504, "deadline_exceeded")
        assert patient.result().status == 200


def test_failed_batch_is_an_error_for_its_own_images_alone(client, pool, occupied):
    behind = wait_behind(client, pool)
    client.engine.fail, client.engine.closed = True, False
    see(occupied.result(), 500, "engine_failed")
    assert "out of memory" in occupied.result().json["message"]
    assert behind.result().status == 200
    assert client.engine.starts == 1


def test_engine_that_dies_is_replaced_and_its_images_are_answered_once(client, pool, occupied):
    behind = wait_behind(client, pool)
    client.engine.deadly, client.engine.shut, client.engine.closed = 1, True, False
    client.until(lambda: client.ask("/readyz").status == 503)
    see(client.ask("/readyz"), 503, "not_ready")
    see(client.predict(GOOD), 503, "not_ready")
    assert client.ask("/healthz").status == 200
    client.engine.shut = False
    assert occupied.result().status == behind.result().status == 200
    assert client.engine.starts == 2
    assert client.count("engine_deaths_total") == 1
    assert client.count('images_total{outcome="answered"}') == 2


def test_image_that_two_engines_die_of_is_given_up(client, pool, occupied):
    client.engine.deadly, client.engine.closed = 2, False
    see(occupied.result(), 500, "engine_failed")
    client.until(lambda: client.ask("/readyz").status == 200)
    assert client.engine.starts == 3
    assert len(client.engine.asked) == 2


def test_image_that_cannot_wait_for_another_engine_is_told_so(client, pool, occupied):
    client.service._start_s = 3600.0  # so long that nobody waits for it
    behind = wait_behind(client, pool)
    client.engine.deadly, client.engine.closed = 1, False
    see(behind.result(), 503, "not_ready")
    assert behind.result().headers["retry-after"] == "3600"
    see(occupied.result(), 503, "not_ready")


REQUEST = (
    b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nAnyvit-Deadline: 1min\r\nContent-Length: %d\r\n\r\n"
)


@pytest.mark.parametrize(
    ("type", "body", "images"),
    [("image/png", GOOD, 1), (FORM, form(*5 * [("image", "a", GOOD)]), 5)],
    ids=["one image", "several"],
)
def test_image_whose_client_leaves_is_not_computed(client, occupied, type, body, images):
    with client.raw(REQUEST % (type.encode(), len(body)), body):
        client.until(lambda: len(client.service.controller.waiting) == images)
    client.until(lambda: not client.service.controller.waiting)
    client.engine.closed = False
    assert occupied.result().status == 200
    assert len(client.engine.asked) == 1
    assert client.count('images_total{outcome="left"}') == images
    assert client.count('requests_total{status="499"}') == 1


def test_client_that_leaves_while_its_image_is_computed_hurts_nobody(client, pool):
    client.engine.closed = True
    with client.raw(REQUEST % (b"image/png", len(GOOD)), GOOD):
        client.until(lambda: client.engine.inside)
    client.until(lambda: client.count('images_total{outcome="left"}') == 1)
    behind = wait_behind(client, pool)
    client.engine.closed = False
    assert behind.result().status == 200
    assert client.count("unread_batches_total") == 1


def test_server_that_starts_says_so(serving, tiny_bundle):
    engine = GatedEngine(tiny_bundle)
    engine.shut = True
    with serving(engine=engine, ready=False) as client:
        see(client.ask("/readyz"), 503, "not_ready")
        see(client.predict(GOOD), 503, "not_ready")
        assert client.ask("/healthz").json == {"status": "alive"}
        load = client.ask("/v1/load").json
        assert (load["ready"], load["level"]) == (False, None)
        assert {one["served"] for one in client.ask("/v1/model").json["candidates"]} == {True, False}
        assert client.ask("/").status == client.ask("/metrics").status == 200
        engine.shut = False
        client.until(lambda: client.ask("/readyz").status == 200)
        assert client.predict(GOOD).status == 200
