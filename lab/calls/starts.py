"""Background starts: POSTs whose call goes on after the answer."""

from __future__ import annotations

import asyncio
import ssl
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from lab.calls.target import OPEN_TIMEOUT, Resolve, endpoint, netloc


@dataclass
class Started:
    """One background start: the HTTP status (0: no answer), the time to it in seconds, and the answer's JSON.

    `began_at` is seconds since 1970, `planned` the call's length in seconds.
    """

    status: int
    began_at: float
    answer_seconds: float
    session: str
    planned: float
    answer: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def answered_at(self) -> float:
        """When the answer came, by the clock that the hosts' logs go by."""
        return self.began_at + self.answer_seconds


async def attach_burst(
    url: str,
    n: int,
    seconds: float,
    ssl_ctx: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    body: Mapping[str, Any] | None = None,
    resolve: Resolve | None = None,
    uds: str | None = None,
    sent: asyncio.Event | None = None,
) -> list[Started]:
    """POST n background starts at once, each of a call of `seconds`; `body` adds to or replaces the sent fields.

    `sent` is set when the first of them has gone out whole.
    """
    parts = urlsplit(url)
    extensions: dict[str, Any] = {}
    found = (resolve or {}).get(endpoint(parts))
    sent_headers = {"Host": parts.netloc, **(headers or {})}
    if found is not None:
        url = urlunsplit(parts._replace(netloc=netloc(*found)))
        extensions["sni_hostname"] = parts.hostname or ""
    transport = httpx.AsyncHTTPTransport(verify=ssl_ctx or True, uds=uds, limits=httpx.Limits(max_connections=None))

    async def trace(step: str, _info: Mapping[str, Any]) -> None:
        if sent is not None and step == "http11.send_request_body.complete":
            sent.set()

    extensions["trace"] = trace

    async def start(client: httpx.AsyncClient) -> Started:
        session = f"attach-{uuid.uuid4().hex[:16]}"
        document = {"bot_id": "demo", "session_id": session, "seconds": seconds, **(body or {})}
        now, began = time.time(), time.monotonic()
        try:
            answer = await client.post(url, json=document, headers=sent_headers, extensions=extensions)
        except httpx.HTTPError as error:
            said = f"{type(error).__name__}: {error}"
            return Started(0, now, time.monotonic() - began, session, seconds, error=said)
        elapsed = time.monotonic() - began
        try:
            content = answer.json()
        except ValueError:
            content = {"text": answer.text[:200]}
        answered = content if isinstance(content, dict) else {}
        return Started(answer.status_code, now, elapsed, session, seconds, answered)

    async with httpx.AsyncClient(transport=transport, timeout=OPEN_TIMEOUT, trust_env=False) as client:
        return list(await asyncio.gather(*(start(client) for _ in range(n))))
