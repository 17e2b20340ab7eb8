"""A search as a step of a job: what it measures, keeps, remembers and tells."""

from __future__ import annotations

import time

import pytest

import anyvit
from anyvit.costs.budget import Budget
from anyvit.data import open_data
from anyvit.deploy.bundle import Bundle
from anyvit.errors import BudgetError
from anyvit.jobs import searching
from anyvit.jobs.offer import Offer
from anyvit.jobs.run_folder import RunFolder
from anyvit.jobs.searching import Search
from anyvit.protocols import silent


def search_of(bundle, out, *, budget="latency<=1s", levers="heads,tokens", backends="torch", deadline=None):
    return Search(
        bundle.model(),
        open_data("digits"),
        bundle.preprocessing,
        Budget.parse(budget),
        Offer.of(levers, backends, 1, trained=True),
        RunFolder(out, {"seed": 0}),
        None,
        0,
        deadline,
        silent,
    )


def test_what_was_measured_is_remembered(finished, tmp_path, hasty):
    first = search_of(finished, tmp_path / "run")
    first.find(())
    first.run.__exit__(None, None, None)
    second = search_of(finished, tmp_path / "run")
    assert {id: result.costs for id, result in second.trials.results.items()} == {
        id: result.costs for id, result in first.trials.results.items()
    }


def test_kept_are_gains_with_their_accuracy_on_all_validation_images(finished, tmp_path, hasty):
    search = search_of(finished, tmp_path / "run")
    search.find(())
    found = search.findings(search.kept[-1])
    assert search.kept[0].id == "full-torch"
    assert {entry["id"] for entry in found["tried"]}.isdisjoint(result.id for result in search.kept)
    assert len(search.kept) + len(found["tried"]) == found["measured"] <= found["size"]
    assert all(entry["why"] for entry in found["tried"])
    assert found["skipped"] == {}
    assert found["contributions"][0]["without"] is None
    before = {result.id: result.accuracy for result in finished.results}
    assert search.kept[0].accuracy == before["full-torch"]


def test_all_that_is_priced_needs_no_search(finished, tmp_path, hasty):
    search = search_of(finished, tmp_path / "run", levers="heads")
    search.find(finished.results)
    assert [result.id for result in search.kept] == [result.id for result in finished.results]
    assert search.findings(search.kept[0]) is None


def test_a_deadline_that_is_over_leaves_the_reference(finished, tmp_path, hasty):
    search = search_of(finished, tmp_path / "run", deadline=time.monotonic() - 1)
    search.find(())
    assert [result.id for result in search.kept] == ["full-torch"]


def test_a_runtime_that_is_asked_for_is_kept_though_it_gains_nothing(finished, tmp_path, hasty, monkeypatch):
    monkeypatch.setattr(searching, "losers", lambda results, cost: {result.id: "slower" for result in results[1:]})
    search = search_of(finished, tmp_path / "run", levers="none", backends="onnxruntime")
    search.find(())
    assert {result.plain.backend.name for result in search.kept} == {"onnxruntime"}


@pytest.mark.slow
def test_shrink_over_runtimes_serves_what_it_promises(finished, tmp_path, hasty):
    out = tmp_path / "out"
    arguments = {"levers": "heads", "backends": "onnxruntime", "tune": "2s", "time": "5m"}
    bundle = anyvit.shrink(str(finished.folder), data="digits", budget="latency<=1s", **arguments, out=str(out))
    search = bundle.document["search"]
    runtimes = {entry["backend"]["name"] for entry in (*search["tried"], *bundle.document["candidates"])}
    assert runtimes == {"torch", "onnxruntime"}
    again = Bundle.load(out)
    for result in again.results:
        assert again.runner(result)(again.conditions.example()).shape == (1, 10)
    assert again.document["promise"]["status"] == "kept"
    assert (out / "report.html").read_text().count("<svg") >= 1
    assert not list((out / "run").glob("measured-*"))
    assert not (out / "run" / "tuning").exists()


@pytest.mark.slow
def test_a_budget_that_no_combination_meets_keeps_the_closest(finished, tmp_path, hasty):
    arguments = {"levers": "none", "backends": "torch,openvino"}
    with pytest.raises(BudgetError, match=r"the closest candidate, .* misses latency<=1us by .*(gave most|kept whole)"):
        anyvit.shrink(str(finished.folder), data="digits", budget="latency<=1us", **arguments, out=str(tmp_path / "o"))
    assert Bundle.load(tmp_path / "o").document["promise"]["status"] == "missed"
