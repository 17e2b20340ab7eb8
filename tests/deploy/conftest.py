"""What the tests of this room share."""

from __future__ import annotations

import pytest

from anyvit.backends.precision import on_threads
from tests.deploy.tiny import write_tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small lose time to threads."""
    with on_threads(1):
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    """A bundle that tests read and do not change."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))
