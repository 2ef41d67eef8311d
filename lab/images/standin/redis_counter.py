"""The API's use of Redis: counters that may be lost, and never a reason not to serve."""

from __future__ import annotations

import importlib
from typing import Any

REDIS_TIMEOUT = 1.0  # seconds
KEY_PREFIX = "standin:calls:"


class RedisCounter:
    """Counts calls in Redis; every method goes on without it."""

    def __init__(self, url: str) -> None:
        self._client: Any = None
        self._word = "not configured"
        if url:
            try:
                library = importlib.import_module("redis.asyncio")
            except ImportError:
                self._word = "no client library"
                return
            self._client = library.from_url(url, socket_timeout=REDIS_TIMEOUT, socket_connect_timeout=REDIS_TIMEOUT)

    async def word(self) -> str:
        """`ok`, or what is wrong."""
        return self._word if self._client is None else "ok" if await self._try(self._client.ping()) else "down"

    async def count(self, what: str) -> None:
        """Add one to a counter."""
        if self._client is not None:
            await self._try(self._client.incr(f"{KEY_PREFIX}{what}"))

    async def read(self, what: str) -> int | None:
        """A counter's value; None when Redis does not say."""
        if self._client is None:
            return None
        found = await self._try(self._client.mget([f"{KEY_PREFIX}{what}"]))
        return int(found[0] or 0) if found else None

    async def _try(self, awaitable: Any) -> Any:
        try:
            return await awaitable
        except Exception:  # redis' errors share no base with OSError, and none may stop the API
            return None
