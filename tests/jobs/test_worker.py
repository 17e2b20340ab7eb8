"""`worker`: what is wrong is said before it serves."""

from __future__ import annotations

import pytest

pytest.importorskip("grpc", reason="needs the extra spread")

from anyvit.deploy.spread import transports
from anyvit.errors import BundleError, MissingExtraError, SettingError
from anyvit.jobs.worker import worker
from tests.deploy.spread.fleet import place


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    return str(place(tmp_path_factory.mktemp("worker") / "placed", 2, "hub").folder / "part-1.safetensors")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"threads": 0}, "threads is 0: it must be at least 1"),
        ({"queue": 0}, "queue is 0: it must be at least 1"),
        ({"max_message": "12"}, "max_message: 12 lacks a unit"),
        ({"max_message": "1kB"}, "max_message is 1kB: it must be from 4096B"),
        ({"max_message": "3GB"}, "to below 2GiB"),
        ({"listen": "7002"}, "'7002' is not host:port"),
        ({"listen": "0.0.0.0:0"}, "lets anybody in the network ask"),
        ({"token_file": "none"}, "none cannot be read"),
        ({"tls_key": "key.pem"}, "tls_cert and tls_key belong together"),
    ],
)
def test_values_outside_their_range(part, arguments, words, monkeypatch):
    monkeypatch.delenv("ANYVIT_TOKEN", raising=False)
    with pytest.raises(SettingError, match=words):
        worker(part, **arguments)


def test_no_part(tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        worker(str(tmp_path / "part-1.safetensors"))


def test_without_grpc_the_extra_is_named(part, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name="grpc")

    monkeypatch.setattr(transports, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"grpcio is not installed. .* 'anyvit\[spread\]'"):
        worker(part)
