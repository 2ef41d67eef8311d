"""Where calls go: a URL, the address behind its name, the trust and the headers."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import connect, unix_connect

OPEN_TIMEOUT = 30.0  # seconds from a call's start to its answer
CLOSE_TIMEOUT = 5.0

Resolve = Mapping[tuple[str, int], tuple[str, int]]


@dataclass(frozen=True)
class Target:
    """Where calls go: a ws:// or wss:// URL, and how to get there."""

    url: str
    ssl_ctx: ssl.SSLContext | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    resolve: Resolve = field(default_factory=dict)
    uds: str | None = None

    def connect(self, session: str) -> connect:
        """A WebSocket connection attempt whose `session_id` is in the query."""
        parts = urlsplit(self.url)
        query = "&".join(part for part in (parts.query, urlencode({"session_id": session})) if part)
        url = urlunsplit(parts._replace(query=query))
        options: dict[str, Any] = {
            "additional_headers": dict(self.headers),
            "compression": None,
            "open_timeout": OPEN_TIMEOUT,
            "close_timeout": CLOSE_TIMEOUT,
            "ping_interval": None,
            "max_queue": None,
        }
        if parts.scheme == "wss":
            options["ssl"] = self.ssl_ctx or ssl.create_default_context()
        if self.uds is not None:
            return unix_connect(self.uds, url, **options)
        found = self.resolve.get(endpoint(parts))
        if found is not None:
            options["host"], options["port"] = found
        return connect(url, proxy=None, **options)


def endpoint(parts: SplitResult) -> tuple[str, int]:
    """Host and port of a URL, with its scheme's port where none is written."""
    return parts.hostname or "", parts.port or (443 if parts.scheme in ("wss", "https") else 80)


def netloc(host: str, port: int) -> str:
    """An address as it stands in a URL; IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
