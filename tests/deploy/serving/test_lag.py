"""How far the event loop is behind."""

from __future__ import annotations

import asyncio
import time

import pytest

from anyvit.deploy.serving.lag import Lag
from anyvit.deploy.serving.problems import Problem
from tests.deploy.serving.fake import service


async def settle(lag, limit):
    for _ in range(500):
        await asyncio.sleep(0.01)
        if lag.seconds < limit:
            return
    pytest.fail(f"still {lag.seconds} s behind")


def test_a_blocked_loop_is_behind_and_catches_up():
    async def play():
        lag = Lag()
        lag.watch()
        time.sleep(0.5)
        await asyncio.sleep(0.02)
        assert 0.2 < lag.seconds < 0.6
        await settle(lag, 0.05)
        lag.stop()

    asyncio.run(play())


def test_a_loop_that_is_behind_turns_requests_away_before_it_looks_at_them(tiny_bundle):
    async def play():
        serving = service(tiny_bundle, objective=2.0)
        serving.start()
        while not serving.ready:
            await asyncio.sleep(0.01)
        await settle(serving._lag, 0.2)
        time.sleep(1.5)
        for _ in range(3):  # turns of the loop, in which the tick that is due is heard
            await asyncio.sleep(0)
        with pytest.raises(Problem) as refused:
            await serving.answer([b"no image"])
        assert (refused.value.status, refused.value.retry_after) == (429, 1.0)
        await settle(serving._lag, 0.2)
        (unread,) = await serving.answer([b"no image"])
        assert "not a JPEG" in str(unread)
        await serving.stop()

    asyncio.run(play())
