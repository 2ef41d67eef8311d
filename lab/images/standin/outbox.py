"""The result outbox: results lie on disk until the API has taken them.

The directory is shared by all workers of a host, so every file carries its worker's id and a worker delivers its own
files only, also those left by its predecessor on the same slot.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from .wire import CORE_SECRET, SECRET_HEADER, http_client, write_json

POST_TIMEOUT = 5.0  # seconds
FIRST_RETRY = 0.5  # seconds, doubled after each failed round
LAST_RETRY = 10.0


class Outbox:
    """One worker's part of the outbox."""

    def __init__(self, directory: Path | None, url: str, worker_id: str) -> None:
        self.directory = directory
        self.url = url
        self.worker_id = worker_id
        self._added = asyncio.Event()

    def add(self, session_id: str, result: dict[str, Any]) -> None:
        """Put a result on disk before anything else happens to it; without a directory it is dropped."""
        if self.directory is not None:
            write_json(self.directory / f"{self.worker_id}--{session_id}.json", result)
            self._added.set()

    def waiting(self) -> list[Path]:
        """This worker's undelivered results, oldest name first."""
        return sorted(self.directory.glob(f"{self.worker_id}--*.json")) if self.directory else []

    async def deliver(self) -> None:
        """Deliver for ever: what is there at start, then what is added; failures are retried with growing pauses."""
        if self.directory is None or not self.url:
            return
        pause = FIRST_RETRY
        async with http_client(self.url, POST_TIMEOUT) as client:
            while True:
                self._added.clear()
                failed = [path for path in self.waiting() if not await self._post(client, path)]
                if not failed:
                    pause = FIRST_RETRY
                    await self._added.wait()
                else:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, LAST_RETRY)

    async def _post(self, client: httpx.AsyncClient, path: Path) -> bool:
        try:
            result = json.loads(path.read_text())
            answer = await client.post(self.url, json=result, headers={SECRET_HEADER: CORE_SECRET})
        except (httpx.HTTPError, OSError, ValueError):
            return False
        if answer.is_success:
            path.unlink(missing_ok=True)
        return answer.is_success
