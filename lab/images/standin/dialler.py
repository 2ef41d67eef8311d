"""Stand-in for the dialler: one campaign loop that reserves slots in its own memory, and a health server.

Every tick it polls FLEET_URLS and starts DIAL_RATE calls on the hosts with most free slots.  A reservation covers a
call from the choice of its host until the host's own health must show it; a restart forgets them all.

Two routes that are not the platform's let a test decide: `POST /standin/dial` starts one call, which rings until
`POST /standin/answer`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from .call_slot import new_session_id
from .host_picker import attach, most_free, poll_all
from .wire import VERSION, http_client, new_app, refuse, reply

UNHEALTHY_AFTER = 30.0  # seconds without a tick


class Dialler:
    """The loop, its reservations and its counters."""

    def __init__(self, env: dict[str, str]) -> None:
        self.fleet = [url.strip() for url in env.get("FLEET_URLS", "").split(",") if url.strip()]
        self.api_url = env.get("API_URL", "").rstrip("/")
        self.rate = int(env.get("DIAL_RATE", "0"))
        self.tick_seconds = float(env.get("TICK", "2"))
        self.bot_id = env.get("DIAL_BOT", "campaign")
        self.call_seconds = float(env.get("DIAL_SECONDS", "20"))
        self.setup_seconds = float(env.get("STANDIN_SETUP_SECONDS", "0"))  # ringing before /attach
        self.reserved: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.in_setup: set[asyncio.Task[None]] = set()
        self.answered = asyncio.Event()
        self.last_tick = time.monotonic()

    def app(self) -> FastAPI:
        """The health server; the loop lives as long as it."""
        app = new_app("cxb-dialler stand-in", lifespan=self.lifespan)
        app.add_route("/health", self.health, methods=["GET"])
        app.add_route("/metrics", self.metrics, methods=["GET"])
        app.add_route("/standin/dial", self.dial, methods=["POST"])
        app.add_route("/standin/answer", self.answer, methods=["POST"])
        return app

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Run the loop; a stop forgets the calls in setup, as a restart of the real one does."""
        loop = asyncio.create_task(self.loop())
        yield
        loop.cancel()
        for task in self.in_setup:
            task.cancel()

    async def loop(self) -> None:
        """Tick for ever; an error is counted and costs one tick."""
        while True:
            try:
                await self.tick()
            except Exception:  # one bad answer must not end the campaign
                self.counts["tick_errors"] += 1
            self.last_tick = time.monotonic()
            await asyncio.sleep(self.tick_seconds)

    async def tick(self) -> None:
        """Poll every host, then start this tick's calls where room is left."""
        self.counts["ticks"] += 1
        if self.rate == 0 or not await self.api_answers():
            return
        healths = await poll_all(self.fleet)
        for _ in range(self.rate):
            url = most_free(healths, self.reserved)
            if url is None:
                self.counts["no_capacity"] += 1
                continue
            self.begin(url, new_session_id(), asyncio.sleep(self.setup_seconds))

    def begin(self, url: str, session: str, ringing: Coroutine[Any, Any, Any]) -> None:
        """Reserve a slot on a host and set up a call there."""
        self.reserved[url] += 1
        task = asyncio.create_task(self.place(url, session, ringing))
        self.in_setup.add(task)
        task.add_done_callback(self.in_setup.discard)

    async def api_answers(self) -> bool:
        """Whether the API is there (without API_URL: always); without it no call is placed."""
        if not self.api_url:
            return True
        try:
            async with http_client(self.api_url, 5.0) as client:
                answered = (await client.get(f"{self.api_url}/health")).is_success
        except Exception:  # whatever it is, the API did not answer
            answered = False
        self.counts["api_unreachable"] += not answered
        return answered

    async def place(self, url: str, session: str, ringing: Coroutine[Any, Any, Any]) -> None:
        """Set up one call on the reserved host: it rings, then it is attached."""
        try:
            await ringing
            body = {"bot_id": self.bot_id, "session_id": session, "seconds": self.call_seconds}
            status, _ = await attach(url, {**body, "campaign": "standin"})
            self.counts["placed" if status == 200 else f"attach_{status or 'unreachable'}"] += 1
        finally:
            self.reserved[url] -= 1

    async def health(self, _request: Request | None = None) -> Response:
        """200 while the loop ticks, 503 once it has not for UNHEALTHY_AFTER seconds."""
        age = time.monotonic() - self.last_tick
        healthy = age <= UNHEALTHY_AFTER
        document = {
            "status": "ok" if healthy else "no tick",
            "calls_in_setup": len(self.in_setup),
            "last_tick_age": round(age, 3),
            "version": VERSION,
        }
        return reply(document, 200 if healthy else 503)

    async def dial(self, _request: Request) -> Response:
        """Start one call now on the host with most free slots; it is in set-up until `answer`."""
        url = most_free(await poll_all(self.fleet), self.reserved)
        if url is None:
            return refuse(503, "no_capacity")
        session = new_session_id()
        self.answered.clear()
        self.begin(url, session, self.answered.wait())
        return reply({"session_id": session, "host": url})

    async def answer(self, _request: Request) -> Response:
        """Let every call that `dial` started be answered."""
        self.answered.set()
        return reply({"calls_in_setup": len(self.in_setup)})

    async def metrics(self, _request: Request) -> Response:
        """Counters in Prometheus' text format."""
        values = {"calls_in_setup": len(self.in_setup), "last_tick_age_seconds": time.monotonic() - self.last_tick}
        lines = [f"dialler_{name} {value}" for name, value in values.items()]
        lines += [f'dialler_events_total{{event="{event}"}} {count}' for event, count in sorted(self.counts.items())]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def run() -> None:
    """Serve health on loopback:HEALTH_PORT while the loop runs."""
    env = dict(os.environ)
    port = int(env.get("HEALTH_PORT", "8090"))
    uvicorn.run(Dialler(env).app(), host="127.0.0.1", port=port, access_log=False, log_level="warning")
