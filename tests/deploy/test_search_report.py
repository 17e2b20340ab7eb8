"""What the report says about a search, and how its winner is had again."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch

from anyvit.deploy.report import samples_of, write_report
from anyvit.deploy.search_report import CASCADE, SEVERAL, UNSHRUNK, Findings, family, recipe, runtime
from tests.deploy.test_report import EVIL, Page
from tests.deploy.tiny import digits, searched, write_tiny


def changed(**changes):
    """The changes of a search, with changes to what it found."""
    return {**searched(), "search": {**searched()["search"], **changes}}


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page)).replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("searched"), **searched())


@pytest.fixture(scope="module")
def page(bundle):
    return write_report(bundle, samples_of(bundle, digits().splits["test"])).read_text(encoding="utf-8")


def test_gains_are_against_the_unshrunk_model_on_the_same_runtime(bundle):
    left = Findings(bundle).left()
    assert [each.result.costs.get("latency") for each in left] == [0.003, 0.0052, 0.0064, 0.0075, None]
    int8, tome, evit, cascade, unbuilt = left
    assert (tome.macs, tome.time) == pytest.approx((2e5 / 1.5e5, 0.005 / 0.0052))  # bfloat16
    assert (evit.macs, evit.time) == pytest.approx((2e5 / 1.6e5, 0.008 / 0.0064))  # float32
    assert (int8.macs, int8.time) == pytest.approx((1, 0.008 / 0.003))  # itself unshrunk: against PyTorch in float32
    assert cascade.time == pytest.approx(0.005 / 0.0075)  # both parts on one runtime
    assert (unbuilt.macs, unbuilt.time) == (None, None)


def test_what_each_part_gives_is_against_the_chosen_one_as_measured_beside(bundle):
    runtime_lost, tokens_lost = Findings(bundle).contributions()
    assert tokens_lost.without == "tokens"
    assert tokens_lost.latency.by == pytest.approx(0.005 / 0.004)
    assert tokens_lost.macs.by == pytest.approx(2e5 / 1.6e5)
    assert tokens_lost.accuracy.by == pytest.approx(0.01)
    assert runtime_lost.without == "torch bfloat16, in PyTorch and float32"


def test_what_each_part_gives_is_known_without_the_chosen_one_beside(tmp_path):
    parts = [part | {"accuracy": None} for part in searched()["search"]["contributions"] if part["without"]]
    _, tokens_lost = Findings(write_tiny(tmp_path, **changed(contributions=parts))).contributions()
    assert tokens_lost.latency.by == pytest.approx(0.005 / 0.004)
    assert tokens_lost.accuracy is None


def test_candidates_are_told_apart_by_what_they_are_made_with(bundle):
    findings = Findings(bundle)
    assert [family(result) for result in bundle.results] == [UNSHRUNK, UNSHRUNK, "tokens", SEVERAL]
    cascade = next(result for result, _ in findings.tried if family(result) == CASCADE)
    assert runtime(cascade) == "torch"


def test_what_is_far_off_does_not_crowd_the_picture(bundle):
    in_view = [result.accuracy for result in Findings(bundle).in_view("latency")]
    assert in_view == [0.93, 0.92, 0.94]  # neither the one that answers wrong nor the one without figures


def test_page_tells_the_search(page):
    text = text_of(page)
    for words in (
        "Without tokens: 5 ms instead of 4 ms (1.25 times), 200 k MACs instead of 160 k (1.25 times), +1.0 points",
        "Without torch bfloat16, in PyTorch and float32: 6 ms instead of 4 ms (1.50 times), the same accuracy",
        "8 of 96 combinations were built and timed here, each with a quick look at 128 validation images.",
        "1 more lies too far off to be drawn.",
        "cannot be built: no GPU",
        "scales: it is made for one scale",
        "int8 needs nncf: pip install &#39;anyvit[int8]&#39;",
        "block 1: 2 of 4 patches, and 1 fused token",
        "seed 0",
    ):
        assert words in text, words
    assert "tuned" not in text


def test_page_of_a_search_needs_nothing_but_itself(page):
    parsed = Page(page)
    assert all(reference.startswith(("data:image/", "#")) for reference in parsed.references)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]\b", page)  # the stand-ins of colours
    svg = page[page.index("<svg") : page.index("</svg>")]
    for words in ("no lever", "tokens", "several levers", "cascade", "tried and left", "chosen", "torch"):
        assert f">{words}</text>" in svg, words
    assert "var(--family0)" in svg


def test_page_without_a_search_tells_of_none(tiny_bundle):
    page = write_report(tiny_bundle).read_text(encoding="utf-8")
    assert "All candidates" in page
    assert not any(words in page for words in ("The recipe", "What the search tried", "What each part gives", "<pre>"))


def test_long_lists_are_folded(tmp_path, page):
    tried = searched()["search"]["tried"]
    folded = write_report(write_tiny(tmp_path, **changed(tried=3 * tried))).read_text(encoding="utf-8")
    assert ("<details>" in page, "<details>" in folded) == (False, True)
    assert "15 candidates tried and left" in folded


@pytest.mark.parametrize(
    "changes",
    [
        {"tried": [], "skipped": {}, "absent": [], "contributions": []},
        {"images": None, "tuning": {"id": "x", "seconds": 60.0, "accuracy_before": 0.9, "accuracy_after": 0.88}},
    ],
    ids=["bare", "tuned in vain"],
)
def test_page_of_other_searches(tmp_path, changes):
    text = text_of(write_report(write_tiny(tmp_path, **changed(**changes))).read_text(encoding="utf-8"))
    assert "The recipe" in text
    told = "90.0 % of the validation images right before, 88.0 % after (−2.0 points). This was not kept" in text
    assert told == ("tuning" in changes)


def test_what_a_search_says_is_escaped(tmp_path):
    tried = [{**each, "why": EVIL} for each in searched()["search"]["tried"]]
    changes = changed(tried=tried, skipped={EVIL: EVIL}, absent=[EVIL])
    page = write_report(write_tiny(tmp_path, **changes, command=EVIL)).read_text(encoding="utf-8")
    assert "<script" not in page


def test_the_recipe_brings_the_winner_back(bundle, tmp_path):
    told = recipe(bundle)
    assert told["commands"].splitlines()[-1] == bundle.document["command"]
    assert all(line.startswith("# ") for line in told["commands"].splitlines()[:-1])
    assert shlex.split(told["commands"], comments=True) == shlex.split(bundle.document["command"])
    picture = tmp_path / "image.png"
    digits().splits["test"].images.load(0).save(picture)
    names = {}
    exec(told["python"].replace("image.jpg", str(picture)), names)
    batch = bundle.conditions.example()
    assert torch.equal(names["runner"](batch), bundle.runner()(batch))
    assert names["winner"].candidate.to_json() == json.loads(told["candidate"])
