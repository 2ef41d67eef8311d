"""Choosing a fleet host by polling, as the API and the Dialler do it today."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from .wire import CORE_SECRET, SECRET_HEADER, http_client

POLL_TIMEOUT = 20.0  # seconds; long, because health polls queue behind busy workers
ATTACH_TIMEOUT = 20.0


async def poll(url: str) -> dict[str, Any] | None:
    """A host's `/health/fleet`, or None when it is unreachable or answers nonsense."""
    try:
        async with http_client(url, POLL_TIMEOUT) as client:
            answer = await client.get(f"{url.rstrip('/')}/health/fleet")
        health = answer.json() if answer.status_code == 200 else None
    except (httpx.HTTPError, OSError, ValueError):
        return None
    return health if isinstance(health, dict) and "fleet_available" in health else None


async def poll_all(urls: list[str]) -> dict[str, dict[str, Any] | None]:
    """Every host's health, asked at once, in the order of `urls`."""
    return dict(zip(urls, await asyncio.gather(*(poll(url) for url in urls)), strict=True))


def most_free(healths: dict[str, dict[str, Any] | None], reserved: dict[str, int]) -> str | None:
    """The host with most free slots after own reservations; None when no host has one.  The first one wins a tie."""
    free = {url: int(health["fleet_available"]) - reserved.get(url, 0) for url, health in healths.items() if health}
    best = max(free, key=lambda url: free[url], default=None)
    return best if best is not None and free[best] > 0 else None


async def attach(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Start a background call on a host; status 0 when the host could not be reached."""
    try:
        async with http_client(url, ATTACH_TIMEOUT) as client:
            answer = await client.post(f"{url.rstrip('/')}/attach", json=body, headers={SECRET_HEADER: CORE_SECRET})
        document = answer.json()
    except (httpx.HTTPError, OSError, ValueError) as error:
        return 0, {"detail": type(error).__name__, "at": time.time()}
    return answer.status_code, document if isinstance(document, dict) else {}
