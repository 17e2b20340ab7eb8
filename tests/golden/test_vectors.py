"""The dispatcher itself: where files are looked for, and that nothing in a file goes unchecked."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.golden.vectors import HERE, Golden, Handler, root


@pytest.fixture
def golden(tmp_path):
    metadata = {"system": "sums", "kind": "double", "config": json.dumps({"factor": 2, "terms": 3}), "notes": ""}
    tensors = {"in/x": torch.ones(3), "out/y": torch.full((3,), 2.0), "out_of/z": torch.tensor(7)}
    (tmp_path / "real").mkdir()
    save_file(tensors, tmp_path / "real" / "any.safetensors", metadata)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    return Golden.read(tmp_path / "linked" / "any.safetensors")


def _double(golden):
    x = golden.inputs["x"]
    return {"out/y": x * golden.config["factor"], "out_of/z": 7, "terms": len(x)}


def test_everything_but_the_inputs_is_compared(golden):
    Handler({"factor"}, _double).check(golden)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"out/y": torch.full((3,), 2.001)}, "out/y"),
        ({"out_of/z": 7.0}, "out_of/z is torch.float64, not torch.int64"),
        ({"terms": 4}, "terms is 4, not 3"),
        ({"more": 1}, r"only one side has \['more'\]"),
    ],
)
def test_what_differs_fails(golden, change, words):
    with pytest.raises(AssertionError, match=words):
        Handler({"factor"}, lambda golden: {**_double(golden), **change}).check(golden)


@pytest.mark.parametrize("missing", ["out/y", "out_of/z", "terms"])
def test_what_is_left_out_fails(golden, missing):
    def run(golden):
        return {name: value for name, value in _double(golden).items() if name != missing}

    with pytest.raises(AssertionError, match="only one side has"):
        Handler({"factor"}, run).check(golden)


def test_one_root(monkeypatch, golden):
    monkeypatch.setenv("ANYVIT_GOLDEN", str(golden.path.parents[1]))
    assert golden.path in root().glob("*/*.safetensors")
    monkeypatch.setenv("ANYVIT_GOLDEN", "")
    assert root() in (HERE / "data", HERE.parents[2] / "shared" / "golden")


def test_our_copies_are_small():
    copies = list((HERE / "data").glob("*/*.safetensors"))
    assert copies
    assert all(copy.stat().st_size < 40_000 for copy in copies)
