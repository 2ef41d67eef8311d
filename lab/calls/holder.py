"""Held calls for code that is not async."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Self

from lab.calls.call import LAST_ECHOES, RATE
from lab.calls.held import Calls
from lab.calls.report import Summary
from lab.calls.target import CLOSE_TIMEOUT, OPEN_TIMEOUT, Resolve, Target


class CallHolder:
    """Held calls for code that is not async: a loop in a thread of its own.

    with CallHolder("wss://...", ssl_ctx) as held:
        held.start(4)
        held.wait_open()
        ...what must not disturb them...
        held.stop()
    assert held.report().clean
    """

    def __init__(
        self,
        url: str,
        ssl_ctx: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
        rate: float = RATE,
        *,
        resolve: Resolve | None = None,
        uds: str | None = None,
    ) -> None:
        self._calls = Calls(Target(url, ssl_ctx, headers or {}, resolve or {}, uds), rate)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="calls", daemon=True)
        self._stopped = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, n: int = 1) -> None:
        """Start n more calls at the same time."""
        self._run(self._start(n), OPEN_TIMEOUT)

    def wait_open(self, timeout: float = OPEN_TIMEOUT) -> int:
        """Wait until every started call is answered; returns how many are opened.  TimeoutError after `timeout`."""
        self._run(self._calls.answered(), timeout)
        return self._calls.summary().opened

    def stop(self) -> None:
        """End all calls; does nothing the second time."""
        if not self._stopped:
            self._stopped = True
            self._run(self._calls.stop(), OPEN_TIMEOUT + LAST_ECHOES + CLOSE_TIMEOUT)

    def report(self) -> Summary:
        """The calls so far, or for good after `stop`."""
        return self._calls.summary()

    async def _start(self, n: int) -> None:
        self._calls.start(n)

    def _run(self, work: Coroutine[Any, Any, None], timeout: float) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)
