"""`list` and `doctor`: what there is, and whether this machine is ready."""

from __future__ import annotations

import pytest

from anyvit.backends import BACKENDS
from anyvit.backends.torch_compile import TorchCompile
from anyvit.backends.torch_eager import TorchEager
from anyvit.errors import SettingError
from anyvit.jobs import doctor as doctor_job
from anyvit.jobs.doctor import doctor
from anyvit.jobs.list import list as list_all
from anyvit.models import VARIANTS


def test_everything_is_listed_with_one_line():
    entries = list_all()
    assert {entry.kind for entry in entries} == {
        "system",
        "model",
        "lever",
        "backend",
        "objective",
        "method",
        "transport",
    }
    assert all(entry.summary and "\n" not in entry.summary for entry in entries)
    assert len({(entry.kind, entry.name) for entry in entries}) == len(entries)


@pytest.mark.parametrize("kind", ["models", "model"])
def test_one_kind(kind):
    assert [entry.name for entry in list_all(kind)] == [*VARIANTS]


def test_unknown_kind():
    with pytest.raises(SettingError, match=r"^unknown kind 'modles'\. Did you mean 'models'"):
        list_all("modles")


def test_doctor_finds_what_is_here():
    checks = {check.name: check for check in doctor()}
    assert checks["torch"].ok
    assert checks["python"].ok
    assert all(check.ok for check in checks.values() if check.ok is not None)
    assert {"processor", "threads", "gpu", "fast bfloat16"} <= set(checks)


def test_doctor_shows_what_each_runtime_offers_and_would_gain(monkeypatch):
    monkeypatch.setattr(TorchEager, "settings", lambda self, device: [{}, {"precision": "bfloat16"}])
    monkeypatch.setattr(TorchEager, "absent", lambda self, device: "int8: pip install it")
    monkeypatch.setattr(TorchCompile, "settings", lambda self, device: [])
    monkeypatch.setattr(TorchCompile, "absent", lambda self, device: None)
    checks = {check.name: check for check in doctor()}
    assert {f"runtime {backend.name}" for backend in BACKENDS} <= set(checks)
    assert checks["runtime torch"].found == "float32, bfloat16; int8: pip install it"
    assert checks["runtime torch"].ok
    assert (checks["runtime torch-compile"].found[:10], checks["runtime torch-compile"].ok) == ("nothing on", None)


def test_doctor_says_how_to_install_what_is_missing(monkeypatch):
    lines = ["no-such-core>=1.0", 'grpcio>=999; extra == "spread"', 'no-such-extra>=1; extra == "spread"', "torch>=999"]
    monkeypatch.setattr(doctor_job, "requires", lambda package: lines)
    checks = {check.name: check for check in doctor()}
    assert checks["no-such-core"].ok is False
    assert checks["no-such-core"].found == "not installed: pip install anyvit"
    assert (checks["no-such-extra"].ok, checks["no-such-extra"].found) == (
        None,
        "not installed: pip install 'anyvit[spread]'",
    )
    assert checks["torch"].ok is False
    assert checks["torch"].found.endswith("needs >=999")
