"""A golden file, and where the files lie."""

import json
import os
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

HERE = Path(__file__).parent


def root() -> Path:
    """The folder that ANYVIT_GOLDEN names and no other, where it is set; else the shared one; else our own copies."""
    if named := os.environ.get("ANYVIT_GOLDEN"):
        return Path(named)
    shared = HERE.parents[2] / "shared" / "golden"
    return shared if shared.is_dir() else HERE / "data"


@dataclass(frozen=True)
class Golden:
    """What a file holds: weights under the reference's names, inputs, expected outputs, and its metadata."""

    path: Path
    system: str
    kind: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> "Golden":
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        return cls(path, metadata["system"], metadata["kind"], json.loads(metadata["config"]), tensors)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix/`, by the rest of their names."""
        return {name.removeprefix(f"{prefix}/"): t for name, t in self.tensors.items() if name.startswith(f"{prefix}/")}

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: _at_least_float32(value) for name, value in self.under("w").items()}

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {name: _at_least_float32(value) for name, value in self.under("in").items()}


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor


@dataclass(frozen=True)
class Handler:
    """How a kind of file is checked.

    `run` gets the file and returns everything it expects, under the same names: its `out…` tensors, and each key of
    its config that is not one of `takes`. `tolerance` is by the beginning of a name, where it is not 1e-5.
    """

    takes: Container[str]
    run: Callable[[Golden], Mapping[str, Any]]
    tolerance: Mapping[str, float] = field(default_factory=dict)

    def check(self, golden: Golden) -> None:
        """Run it and compare all.

        Raises:
            AssertionError: A result differs, or is missing, or was not asked for.
        """
        expected: dict[str, Any] = {name: value for name, value in golden.tensors.items() if name.startswith("out")}
        expected |= {key: value for key, value in golden.config.items() if key not in self.takes}
        found = self.run(golden)
        assert found.keys() == expected.keys(), f"only one side has {sorted(found.keys() ^ expected.keys())}"
        for name, value in expected.items():
            self._compare(name, found[name], value)

    def _compare(self, name: str, found: object, expected: object) -> None:
        if not isinstance(expected, Tensor):
            assert found == expected, f"{name} is {found}, not {expected}"
            return
        limit = max((limit for start, limit in self.tolerance.items() if name.startswith(start)), default=1e-5)
        same = found.detach() if isinstance(found, Tensor) else torch.from_numpy(np.array(found))
        assert torch.can_cast(same.dtype, expected.dtype), f"{name} is {same.dtype}, not {expected.dtype}"
        same = same.to(expected.dtype)
        torch.testing.assert_close(same, expected, rtol=limit, atol=limit, msg=lambda words: f"{name}: {words}")
