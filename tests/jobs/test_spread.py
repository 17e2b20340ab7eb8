"""`fit --spread` in several processes: one run, one voice, one bundle."""

import json

import pytest

import anyvit
from anyvit.deploy.bundle import Bundle
from anyvit.errors import SettingError
from tests.conftest import TINY
from tests.jobs import spreading

HSVIT = "hsvit_c2a2_8"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Nothing is drawn at random but the order of the images."""
    file = tmp_path_factory.mktemp("recipe") / "plain.json"
    file.write_text(json.dumps({"base": "scratch-tiny", "mixing": 0.0, "batch_size": 8, "precision": "float32"}))
    return file


@pytest.fixture
def start(processes, photos, recipe, tmp_path):
    """Starts `fit --spread` in processes; gives their exit statuses and what each wrote to standard error."""

    def start(size, *words, out="out", model=HSVIT, spread="groups"):
        asked = ["--model", model, "--budget", "params<=1M", "--epochs", 2, "--recipe", recipe, "--out", tmp_path / out]
        processes.run(
            size, spreading.command, tmp_path, "fit", photos, *map(str, asked), "--spread", spread, *map(str, words)
        )
        read = [
            [(tmp_path / f"{name}-{rank}").read_text() for rank in range(size)] for name in ("status", "out", "err")
        ]
        return [int(status) for status in read[0]], read[1], read[2]

    return start


@pytest.mark.slow
def test_processes_leave_one_bundle_and_speak_with_one_voice(start, tmp_path):
    statuses, printed, news = start(3, spread="groups:hub")
    assert statuses == [0, 0, 0]
    assert "params" in printed[0]
    assert printed[1:] == news[1:] == ["", ""]
    bundle = Bundle.load(tmp_path / "out")
    assert bundle.document["promise"]["status"] == "kept"
    assert bundle.document["run"]["spread"] == "groups:hub"
    assert len(bundle.model().groups) == 4
    assert sorted(path.name for path in (tmp_path / "out" / "run").iterdir()) == ["arguments.json", "lock", "logs"]
    assert start(2)[0] == [0, 0]  # the finished run is given at once, however it is spread


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "words", "status", "message"),
    [
        (2, {"spread": "groups,data=3"}, 2, "2 processes cannot form 3 equal rows"),
        (5, {}, 2, "4 groups cannot be spread over 5 processes: start at most 4"),
        (2, {"model": TINY}, 2, "only an HSViT has groups to spread over processes, a HydraViT has none"),
    ],
)
def test_what_cannot_be_spread_is_refused_once(start, tmp_path, size, words, status, message):
    statuses, _, news = start(size, **words)
    assert statuses == [status] * size
    assert sum(message in each for each in news) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_error_of_the_first_process_is_everybodys(start):
    statuses, _, news = start(2, "--budget", "params<=1k")
    assert statuses == [3, 3]
    assert sum("error:" in each for each in news) == 1


def test_without_torchrun_the_command_to_type_is_said(photos, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SettingError, match=r"Type: torchrun --nproc-per-node 4 -m anyvit fit .* --spread groups:hub"):
        anyvit.fit(str(photos), model=HSVIT, spread="groups:hub")


def test_a_word_that_is_no_layout_is_refused(photos):
    with pytest.raises(SettingError, match="cannot read spread 'grops'"):
        anyvit.fit(str(photos), model=HSVIT, spread="grops")
