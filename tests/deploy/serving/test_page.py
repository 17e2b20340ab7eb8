"""The page for people, in a real browser, against a stub that keeps the contract of the server."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anyvit.deploy

uvicorn = pytest.importorskip("uvicorn", reason="the page's tests need anyvit[serve]")
fastapi = pytest.importorskip("fastapi", reason="the page's tests need anyvit[serve]")
webdriver = pytest.importorskip("selenium.webdriver", reason="the page's tests need selenium")

from fastapi import FastAPI, Query, Request  # noqa: E402
from fastapi.responses import FileResponse, JSONResponse  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="the page's tests need chromium and chromedriver"),
]

PAGE = Path(anyvit.deploy.__file__).parent / "serving/page"
POLICY = "default-src 'self'; img-src 'self' blob: data:"
EVIL = "<img src=x onerror=\"console.error('evil')\">"
LADDER = {
    "full-torch": (0.91, 4.1),
    "heads3-torch": (0.874, 2.0),
    "heads2-onnx": (0.82, 0.962),
    "heads1-onnx": (0.74, 0.49),
}


def candidate(name, accuracy, ms, *, why=None):
    costs = {"latency": ms / 1000, "params": 30000.0}
    return {"id": name, "accuracy": accuracy, "costs": costs, "served": not why, "why": why, "batch_ms": {"1": ms}}


def lively(seconds=120, until=1_764_500_000):
    """Two minutes of a rising and falling load, which the ladder of candidates answers."""
    history = []
    for second in range(seconds):
        requests = round(66 + 48 * math.sin(second / 19) + 9 * math.sin(second * 2.1) + 6 * math.sin(second * 5.3))
        shed = max(0, requests - 104)
        rung = min(max((requests - 25) / 26, 0), len(LADDER) - 1.001)
        names, blend = list(LADDER)[int(rung) : int(rung) + 2], rung % 1
        counts = {names[1]: round(blend * (requests - shed)), names[0]: 0}
        counts[names[0]] = requests - shed - counts[names[1]]
        accuracy = sum(LADDER[name][0] * count for name, count in counts.items()) / (requests - shed)
        figures = {"requests": requests, "answered": requests - shed, "late": 0, "shed": shed, "failed": 0}
        at = until - seconds + second
        history.append({"at": at, "p99_ms": 8 + requests / 4, "accuracy": accuracy, "candidates": counts} | figures)
    return history


class Stub:
    """What the server would say: tests set it, and read what was asked."""

    def __init__(self):
        self.url = ""
        self.reset()

    def reset(self):
        self.asked = []
        self.loads = 0
        self.refusals = []
        self.label, self.name = "cat", "heads3-torch"
        candidates = [candidate(name, *figures) for name, figures in LADDER.items()]
        candidates.append(candidate("full-openvino", 0.91, 5.2, why="slower than full-torch, and no better"))
        self.model = {"task": "classification", "classes": ["cat", "dog", "fox"], "preprocessing": {"image_size": 32}}
        self.model |= {"slo_ms": 50.0, "min_accuracy": None, "measured_here": True, "device": "a CPU (2 cores)"}
        self.model |= {"candidates": candidates}
        self.load = {"slo_ms": 50.0, "level": "heads3-torch", "queue": 3, "ready": True, "history": lively()}

    def predict(self, budget, top_k, name):
        self.asked.append({"budget": budget, "top_k": top_k, "name": name})
        if self.refusals:
            status, body, headers = self.refusals.pop(0)
            return JSONResponse(body, status, headers)
        top = [[self.label, 0.93], ["dog", 0.05], ["fox", 0.02]][:top_k]
        found = {"name": name, "label": self.label, "probability": 0.93, "top": top, "error": None}
        found |= {"candidate": self.name, "accuracy": 0.874, "waited_ms": 1.2, "computed_ms": 4.5}
        return {"predictions": [found], "total_ms": 7.1}


def application(stub):
    app = FastAPI(title="AnyViT", version="0.1.0", docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def policy(request: Request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    bodies = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
    bodies["application/json"] = {"schema": {"type": "object"}, "example": {"image": "BASE64"}}

    @app.post(
        "/v1/predict",
        summary="Label images",
        responses={429: {"description": "overloaded"}},
        openapi_extra={"requestBody": {"content": bodies}},
    )
    async def predict(request: Request, budget: str = Query("", description="budget language"), top_k: int = 1):
        """One image or many."""
        form = await request.form()
        return stub.predict(budget, top_k, form["image"].filename)

    @app.get("/v1/model", summary="What is served")
    def model():
        return stub.model

    @app.get("/v1/load", summary="The last two minutes")
    def load():
        stub.loads += 1
        return stub.load

    for path, name in {"/": "index.html", "/docs": "docs.html"}.items():
        app.get(path, include_in_schema=False)(lambda name=name: FileResponse(PAGE / name))
    app.get("/page/{name}", include_in_schema=False)(lambda name: FileResponse(PAGE / name))
    return app


@contextmanager
def served(stub):
    server = uvicorn.Server(uvicorn.Config(application(stub), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.05)
    stub.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield stub
    server.should_exit = True
    thread.join(10)


@contextmanager
def browsing(profile, *more):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    switches = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for switch in f"{switches} disable-component-update disable-sync user-data-dir={profile}".split():
        options.add_argument(f"--{switch}")
    for switch in more:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))  # a path: nothing is looked for
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def server():
    with served(Stub()) as stub:
        yield stub


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


class Page:
    """The open page, as a person sees it."""

    def __init__(self, driver):
        self.driver = driver

    def find(self, name):
        return self.driver.find_element(By.ID, name)

    def text(self, name):
        return self.find(name).text.replace("\N{NO-BREAK SPACE}", " ")

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def until(self, check):
        WebDriverWait(self.driver, 10, 0.05).until(lambda _: check())

    def give(self, path):
        self.find("file").send_keys(str(path))
        self.until(lambda: self.find("answer").is_displayed() or self.find("trouble-ask").is_displayed())


@pytest.fixture
def page(server, browser):
    """The page as it opens; when the test is over, its console must hold nothing but the refusals of the stub."""
    server.reset()
    browser.set_window_size(1200, 1000)
    browser.get(server.url)
    page = Page(browser)
    page.until(lambda: page.text("state") == "ready")
    yield page
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert [message for message in complaints if not re.search(r"predict.* responded with a status of", message)] == []


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "cat.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    return path


GIVE = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const given = new DataTransfer();
given.items.add(new File([bytes], 'given.png', { type: 'image/png' }));
"""
GESTURES = {
    "drop": "document.getElementById('drop').dispatchEvent(new DragEvent('drop', "
    "{ dataTransfer: given, bubbles: true, cancelable: true }));",
    "paste": "document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: given }));",
}


def test_answer_tells_label_candidate_and_time(page, server, photo):
    page.give(photo)
    assert page.text("label") == "cat"
    assert page.text("candidate") == "heads3-torch"
    assert page.text("accuracy") == "known to be right 87.4 % of the time"
    assert re.fullmatch(r"[\d.]+ ms", page.text("latency"))
    assert page.text("top").splitlines() == ["cat", "93.0 %", "dog", "5.0 %", "fox", "2.0 %"]
    assert page.text("parts").splitlines()[4:] == ["waited", "1.2 ms", "computed", "4.5 ms"]
    assert server.asked == [{"budget": "", "top_k": 3, "name": "cat.png"}]
    page.until(lambda: page.run("return document.getElementById('image').naturalWidth") == 64)
    assert page.find("said").get_attribute("textContent").startswith("cat, 93.0")


@pytest.mark.parametrize("gesture", GESTURES)
def test_image_is_taken_by(page, server, photo, gesture):
    page.run(GIVE + GESTURES[gesture], base64.b64encode(photo.read_bytes()).decode())
    page.until(lambda: page.find("answer").is_displayed())
    assert server.asked[0]["name"] == "given.png"


def test_every_stop_of_the_slider_is_a_budget_that_holds_its_candidate(page, server, photo):
    from anyvit.costs.budget import Budget
    from anyvit.scaling.search import margin_of

    page.give(photo)
    slider = page.find("budget")
    assert page.text("bound") == "no bound"
    for ms in sorted(ms for _, ms in LADDER.values())[::-1]:
        asked = len(server.asked)
        slider.send_keys(Keys.ARROW_LEFT)
        page.until(lambda asked=asked: len(server.asked) > asked)
        budget = server.asked[-1]["budget"]
        assert re.fullmatch(r"latency<=[\d.]+ms", budget)
        (bound,) = Budget.parse(budget).cost_bounds()
        assert bound.met_by(ms / 1000, margin_of("latency")), budget
        assert not bound.met_by(ms * 1.02 / 1000, margin_of("latency")), budget
        assert slider.get_attribute("aria-valuetext").startswith("at most ")
    assert page.text("inside") == "1 of 4 candidates inside; the most accurate is heads1-onnx (74.0 %)."


def test_error_is_shown_with_its_hint_and_the_page_works_on(page, server, photo):
    body = {"type": "budget_not_met", "message": "latency<=1ms cannot be met.", "hint": "Allow 5ms."}
    server.refusals = [(422, body, {})]
    page.give(photo)
    assert page.text("trouble-ask").splitlines()[:3] == [body["message"], body["hint"], body["type"]]
    assert page.find("trouble-ask").find_element(By.XPATH, "..").get_attribute("aria-live") == "assertive"
    assert not page.find("answer").is_displayed()
    page.find("again").click()
    page.until(lambda: page.find("answer").is_displayed())
    assert not page.find("trouble-ask").is_displayed()


def test_not_ready_is_shown_and_asked_again(page, server, photo):
    body = {"type": "not_ready", "message": "The model is being loaded.", "hint": ""}
    server.refusals = [(503, body, {"Retry-After": "1"})]
    page.give(photo)
    assert "It will be asked again in 1 s." in page.text("trouble-ask")
    page.until(lambda: page.find("answer").is_displayed())
    assert len(server.asked) == 2
    server.load |= {"ready": False}
    page.until(lambda: page.text("state") == "not ready")


def test_chart_draws_and_says_the_same_in_words(page, server):
    chart = page.find("chart")
    page.until(lambda: len(chart.find_elements(By.CSS_SELECTOR, ".part")) == len(LADDER))
    colours = page.run("return [...document.querySelectorAll('#chart .part')].map((p) => getComputedStyle(p).fill)")
    assert len(set(colours)) == len(LADDER)
    assert page.run("return document.querySelector('#chart .shed').getBBox().height") > 1
    last = server.load["history"][-1]
    label = chart.get_attribute("aria-label")
    assert f"{last['requests']} requests in the last second" in label
    assert all(name in label for name, count in last["candidates"].items() if count)
    rows = [row.text.split()[0] for row in page.find("legend").find_elements(By.TAG_NAME, "tr")]
    assert rows == list(LADDER)
    assert page.text("rate") == str(last["requests"])
    assert page.find("left-list").get_attribute("textContent").startswith("full-openvino: slower")


def test_a_young_server_and_an_unknown_candidate_are_drawn(page, server):
    history = lively(5)
    history[-1] |= {"candidates": {"newcomer": 3}, "accuracy": None, "p99_ms": None}
    server.load |= {"history": history}
    page.until(lambda: "newcomer" in page.text("legend"))
    server.load |= {"history": []}
    page.until(lambda: page.text("rate") == "0")
    assert "none in the last two minutes" in page.find("chart").get_attribute("textContent")


def test_a_hidden_tab_asks_nothing(page, server):
    page.run(
        "Object.defineProperty(document, 'hidden', { get: () => window.away, configurable: true }); window.away = true"
    )
    page.run("document.dispatchEvent(new Event('visibilitychange'))")
    threading.Event().wait(1.2)
    before = server.loads
    threading.Event().wait(2.2)
    assert server.loads == before
    page.run("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    page.until(lambda: server.loads > before)


def test_keyboard_alone(page, server, photo):
    def press(key):  # to whatever has the focus; what is sent to a file input itself would be taken for a path
        ActionChains(page.driver).send_keys(key).perform()

    def tab_to(name):
        for _ in range(8):
            press(Keys.TAB)
            if page.run("return document.activeElement.id") == name:
                return page.driver.switch_to.active_element
        raise AssertionError(f"{name} is not reached by the tabulator")

    control = tab_to("file")
    assert page.run("return getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    page.run(
        "arguments[0].addEventListener('click', (event) => { window.opened = true; event.preventDefault(); })", control
    )
    press(Keys.SPACE)
    assert page.run("return window.opened")
    page.give(photo)
    slider = tab_to("budget")
    slider.send_keys(Keys.HOME)
    page.until(lambda: server.asked[-1]["budget"])
    slider.send_keys(Keys.ARROW_RIGHT)
    page.until(lambda: len({asked["budget"] for asked in server.asked}) == 3)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_nothing_is_wider_than_a_phone(page, server, photo, path):
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    server.label, server.name = (
        "an_extraordinarily_long_class_name_without_any_gap" * 2,
        "heads3-openvino-bfloat16-evit0.7-merged" * 2,
    )
    server.load |= {"level": server.name}
    server.load["history"][-1]["candidates"] = {server.name: 9}
    page.driver.get(server.url + path)
    if path == "/":
        page.until(lambda: server.name in page.text("legend").replace("\n", ""))
        page.give(photo)
    else:
        page.until(lambda: "/v1/predict" in page.text("operations"))
    assert page.run("return [innerWidth, document.documentElement.scrollWidth <= innerWidth]") == [360, True]


def test_hostile_names_stay_text(page, server, photo):
    evil = photo.with_name("<img src=x onerror=alert(1)>.png")
    evil.write_bytes(photo.read_bytes())
    server.label, server.name = EVIL, EVIL
    server.model |= {"classes": [EVIL], "device": EVIL}
    server.model["candidates"] = [candidate(EVIL, 0.9, 3.0), candidate(EVIL + "2", 0.9, 4.0, why=EVIL)]
    server.load["history"][-1]["candidates"] = {EVIL: 4, EVIL + "3": 5}
    page.driver.refresh()
    page.until(lambda: EVIL in page.text("legend"))
    page.give(evil)
    assert page.text("label") == EVIL
    server.refusals = [(422, {"type": EVIL, "message": EVIL, "hint": EVIL}, {})]
    page.find("budget").send_keys(Keys.HOME)
    page.until(lambda: page.find("trouble-ask").is_displayed())
    assert page.run("return document.images.length") == 1


def test_docs_page_lists_the_operations(page, server):
    page.driver.get(server.url + "/docs")
    page.until(lambda: page.find("operations").get_attribute("aria-busy") == "false")
    heads = [head.text for head in page.driver.find_elements(By.CSS_SELECTOR, "article h2")]
    assert heads == ["POST /v1/predict", "GET /v1/model", "GET /v1/load"]
    predict = page.driver.find_element(By.TAG_NAME, "article").text
    for words in ("Label images", "One image or many.", "budget language", "image/*", "429", "overloaded"):
        assert words in predict
    example = json.dumps({"image": "BASE64"}, separators=(",", ":"))
    assert f"-d '{example}' '{server.url}/v1/predict'" in predict
