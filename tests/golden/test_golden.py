"""Golden vectors: small runs of the reference implementations, one test a file.

A file is checked by the handler of its system and kind, whatever its name. Kinds that have none are skipped.
"""

from pathlib import Path

import pytest

from tests.golden.handlers import HANDLERS
from tests.golden.vectors import Golden, root

ROOT = root()
FILES = sorted(ROOT.glob("*/*.safetensors"))


def test_there_are_golden_files():
    assert FILES, f"no golden files in {ROOT}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_golden(path: Path):
    golden = Golden.read(path)
    handler = HANDLERS.get((golden.system, golden.kind))
    if handler is None:
        pytest.skip(f"not covered: {golden.system} {golden.kind}")
    handler.check(golden)
