"""What the tests of the server share."""

from __future__ import annotations

from functools import partial

import pytest


@pytest.fixture(scope="session")
def serving(tiny_bundle):
    """`with serving(objective=..., engine=..., body=...) as client`: the tiny bundle over HTTP."""
    from tests.deploy.serving.over_http import serving

    return partial(serving, tiny_bundle)


@pytest.fixture(scope="module")
def client(serving):
    """A client of a server that the tests of a file share, with the usual limits."""
    with serving() as client:
        yield client
        client.see_at_rest()
