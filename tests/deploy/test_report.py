"""One page that holds all it shows, whatever the run was like."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from anyvit.deploy.report import SAMPLES, Sample, samples_of, write_report
from anyvit.evaluation.metrics import Scores
from tests.deploy.tiny import digits, document, write_tiny

EVIL = "<script>alert('x')</script> & \"$x_1$\""


class Page(HTMLParser):
    """Reads a page: its tags are closed in order, and what it refers to is noted."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "rect", "link"})
    OPTIONAL = frozenset({"td", "th", "tr", "p", "li"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href")]


@pytest.fixture
def page(tiny_bundle, tmp_path):
    bundle = write_tiny(tmp_path)
    path = write_report(bundle, samples_of(bundle, digits().splits["test"]))
    assert path == tmp_path / "report.html"
    return path.read_text(encoding="utf-8")


def test_page_says_what_the_run_found(page):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page)).replace("\N{NO-BREAK SPACE}", " ")
    test = document()["test"]
    low, high = (f"{100 * end:.1f} %" for end in test["interval"])
    for words in (
        f"{100 * test['accuracy']:.1f} % right in 4 ms an image",
        "full-torch is the most accurate of 4 candidates inside the budget latency&lt;=4.5ms kept.",
        f"of {test['count']} test images right (95&nbsp;% interval {low} to {high})",
        "heads3-torch",
        "4.1 ms, 4.2 ms, 4 ms",
        "anyvit fit digits --budget &#39;latency&lt;=4.5ms&#39;",
        "batch 1, 8 px, 1 thread.",
        document()["device"]["fingerprint"],
    ):
        assert words in text, words


def test_page_needs_nothing_but_itself(page):
    parsed = Page(page)
    assert parsed.tags.count("svg") == 2
    assert parsed.tags.count("img") == SAMPLES
    assert all(reference.startswith(("data:image/", "#")) for reference in parsed.references)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert len(page) < 200_000


def test_pictures_take_the_colours_of_the_page(page):
    assert "var(--accent)" in page[page.index("<svg") :]
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", page)


def test_ids_of_the_pictures_do_not_clash(page):
    ids = re.findall(r'<(?:clipPath|path) id="([^"]+)"', page)
    definitions = [name for name in ids if len(name) > 8]
    assert len(definitions) == len(set(definitions))


def test_what_users_wrote_is_escaped(tmp_path):
    names = [EVIL, *map(str, range(1, 10))]
    content = document()
    test = {**content["test"], "classes": dict(zip(names, content["test"]["classes"].values(), strict=True))}
    data = {**content["data"], "source": EVIL, "notes": [EVIL]}
    bundle = write_tiny(tmp_path, classes=names, data=data, test=test, command=EVIL)
    sample = Sample(Image.new("RGB", (8, 8)), EVIL, EVIL, 0.5)
    page = write_report(bundle, [sample]).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;$x_1$&#34;" in page


@pytest.mark.parametrize(
    "changes",
    [
        {"test": None, "finished": False, "history": [], "promise": {"status": "unproven", "bounds": []}},
        {"run": {"budget": None}},
        {"run": {"budget": "params<=20k, accuracy>=0.99"}, "promise": {"status": "missed", "bounds": []}},
        {"run": {"budget": "latency<=5s"}},
        {"history": [{"step": 1, "epoch": 0.5, "seconds": 1.0, "loss": None}, {"step": 2, "epoch": 1, "loss": 2.0}]},
    ],
    ids=["draft", "no budget", "missed", "far budget", "loss only"],
)
def test_page_of_other_runs(tmp_path, changes):
    page = write_report(write_tiny(tmp_path, **changes)).read_text(encoding="utf-8")
    assert "</html>" in page
    assert ("draft" in page) == ("finished" in changes)
    assert ("the closest" in page) == ("promise" in changes and changes["promise"]["status"] == "missed")


def test_page_of_many_classes(tmp_path):
    names = [f"class {index}" for index in range(60)]
    labels = np.arange(60).repeat(2)
    probabilities = np.eye(60)[np.roll(labels, 1)]
    scores = Scores.of(labels, probabilities, names).to_json()
    page = write_report(write_tiny(tmp_path, classes=names, test=scores)).read_text(encoding="utf-8")
    assert 'class="matrix"' not in page
    assert "<b>class 1</b> taken for <b>class 0</b>: 1" in page


def test_samples_show_mistakes_and_successes(tiny_bundle):
    samples = samples_of(tiny_bundle, digits().splits["test"])
    assert len(samples) == SAMPLES
    assert [sample.right for sample in samples] == [False] * 6 + [True] * 6
    surest = [sample.probability for sample in samples[:6]]
    assert surest == sorted(surest, reverse=True)


def test_thumbnails_are_small():
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8))
    assert Sample(photograph, "a", "a", 1.0).uri.startswith("data:image/jpeg;base64,")
    assert len(Sample(photograph, "a", "a", 1.0).uri) < 40_000
    assert photograph.size == (1200, 900)
    assert Sample(Image.new("RGB", (8, 8)), "a", "a", 1.0).uri.startswith("data:image/png;base64,")


def test_report_leaves_the_state_of_pyplot_alone(tiny_bundle, tmp_path):
    from matplotlib import pyplot

    before = dict(pyplot.rcParams)
    write_report(write_tiny(tmp_path))
    assert pyplot.get_fignums() == []
    assert dict(pyplot.rcParams) == before
