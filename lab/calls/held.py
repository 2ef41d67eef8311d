"""Sets of held calls: for a time, or as a burst of simultaneous starts."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from lab.calls.call import RATE, Call
from lab.calls.driver_lag import DriverLag
from lab.calls.report import Report, Summary
from lab.calls.target import Resolve, Target


class Calls:
    """A growing set of held calls on one loop."""

    def __init__(self, target: Target, rate: float = RATE) -> None:
        self._target = target
        self._rate = rate
        self._lag = DriverLag()
        self._calls: list[Call] = []
        self._tasks: list[asyncio.Task[Report]] = []

    def start(self, n: int) -> None:
        """Start n calls at the same time."""
        if not self._tasks:
            self._lag.start()
        started = [Call(self._target, self._lag, self._rate) for _ in range(n)]
        self._calls += started
        self._tasks += [asyncio.create_task(call.run()) for call in started]

    async def answered(self) -> None:
        """Wait until every started call is opened, refused or failed."""
        await asyncio.gather(*(call.answered.wait() for call in self._calls))

    async def stop(self) -> None:
        """End every call in the ordinary way and wait for their ends."""
        for call in self._calls:
            call.stop()
        await asyncio.gather(*self._tasks)
        self._lag.stop()

    def summary(self) -> Summary:
        """The calls so far; those still held are reported as they are now."""
        return Summary([call.report for call in self._calls], self._lag.worst)


async def hold(
    url: str,
    ssl_ctx: ssl.SSLContext | None,
    n: int,
    seconds: float,
    headers: Mapping[str, str] | None = None,
    rate: float = RATE,
    *,
    resolve: Resolve | None = None,
    uds: str | None = None,
) -> Summary:
    """Hold n calls for `seconds` after all are answered, then end them and report."""
    calls = Calls(Target(url, ssl_ctx, headers or {}, resolve or {}, uds), rate)
    calls.start(n)
    await calls.answered()
    await asyncio.sleep(seconds)
    await calls.stop()
    return calls.summary()


@asynccontextmanager
async def burst(
    url: str,
    n: int,
    ssl_ctx: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    rate: float = 0,
    resolve: Resolve | None = None,
    uds: str | None = None,
) -> AsyncIterator[Summary]:
    """Start n calls at once; yields when all are answered, holds the accepted ones until the block is left."""
    calls = Calls(Target(url, ssl_ctx, headers or {}, resolve or {}, uds), rate)
    calls.start(n)
    await calls.answered()
    try:
        yield calls.summary()
    finally:
        await calls.stop()
