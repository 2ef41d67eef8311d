"""Asking the other workers of the host for their occupancy, each over its socket at the fixed path."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from .worker_settings import WorkerSettings

ASK_TIMEOUT = 1.0  # seconds per sibling; all are asked at once
CACHE_SECONDS = 2.0  # /health must be quick: it may repeat what siblings said this long ago
CACHE_WAIT = 0.25  # seconds that /health waits for a fresher answer


async def ask(socket: Path, timeout: float = ASK_TIMEOUT) -> dict[str, Any] | None:
    """A worker's own `/health` over a fresh connection; None when it does not answer with 200 in time."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(b"GET /health?alone=1 HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n")
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
        answer = json.loads(body) if b" 200 " in head.partition(b"\r\n")[0] else None
    except (OSError, TimeoutError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


class Siblings:
    """The other workers 1..N of this host."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self._free = 0
        self._asked_at = float("-inf")
        self._refresh: asyncio.Task[None] | None = None

    async def healths(self) -> dict[str, dict[str, Any] | None]:
        """What each sibling says now, by worker id, this worker left out."""
        ids = [str(n) for n in range(1, self.settings.workers + 1) if str(n) != self.settings.worker_id]
        answers = await asyncio.gather(*(ask(self.settings.sibling(worker_id)) for worker_id in ids))
        return dict(zip(ids, answers, strict=True))

    async def free(self) -> int:
        """Free call slots of all siblings, at most a few seconds old; never waits longer than CACHE_WAIT."""
        if time.monotonic() - self._asked_at > CACHE_SECONDS:
            if self._refresh is None or self._refresh.done():
                self._refresh = asyncio.create_task(self._ask_all())
            await asyncio.wait([self._refresh], timeout=CACHE_WAIT)
        return self._free

    async def _ask_all(self) -> None:
        answers = (await self.healths()).values()
        self._free = sum(free_slots(answer) for answer in answers if answer)
        self._asked_at = time.monotonic()


def free_slots(health: dict[str, Any]) -> int:
    """Free call slots of a worker, by its own word."""
    return max(0, int(health.get("worker_max", 0)) - int(health.get("worker_calls", 0)))
