"""A stream of starts: callers who try again and again, while something else happens."""

from __future__ import annotations

import asyncio
import ssl
import threading
from types import TracebackType
from typing import Self

from lab.calls.call import Call
from lab.calls.driver_lag import DriverLag
from lab.calls.report import Report, Summary
from lab.calls.target import CLOSE_TIMEOUT, OPEN_TIMEOUT, Resolve, Target


class StartStream:
    """Callers side by side, for code that is not async: each starts a call, ends it, and starts the next one.

    A call that was taken lasts `seconds`; `pause` seconds lie between one call and the next.

    with StartStream("wss://...", 20, ssl_ctx) as stream:
        ...what is to happen meanwhile...
    stream.summary()
    """

    def __init__(
        self,
        url: str,
        callers: int,
        ssl_ctx: ssl.SSLContext | None = None,
        *,
        seconds: float = 0.2,
        pause: float = 0.0,
        resolve: Resolve | None = None,
        uds: str | None = None,
    ) -> None:
        self._target = Target(url, ssl_ctx, {}, resolve or {}, uds)
        self._callers = callers
        self._seconds = seconds
        self._pause = pause
        self._lag = DriverLag()
        self._reports: list[Report] = []
        self._over = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="starts", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(OPEN_TIMEOUT + self._seconds + self._pause + CLOSE_TIMEOUT)
        if self._failed is not None and error is None:
            raise self._failed

    def summary(self) -> Summary:
        """The calls so far; those that wait for their answer have no `answer_seconds`."""
        return Summary(list(self._reports), self._lag.worst)

    def in_flight(self, at: float) -> int:
        """How many starts waited for their answer at a time (seconds since 1970)."""
        return sum(one.began_at <= at and (not one.answer_seconds or at <= one.answered_at) for one in self._reports)

    def _run(self) -> None:
        try:
            asyncio.run(self._call_all())
        except BaseException as error:
            self._failed = error

    async def _call_all(self) -> None:
        self._lag.start()
        await asyncio.gather(*(self._call_again() for _ in range(self._callers)))
        self._lag.stop()

    async def _call_again(self) -> None:
        while not self._over.is_set():
            call = Call(self._target, self._lag, rate=0)
            self._reports.append(call.report)
            task = asyncio.create_task(call.run())
            await call.answered.wait()
            await asyncio.sleep(self._seconds if call.report.opened else 0)
            call.stop()
            await task
            await asyncio.sleep(self._pause)
