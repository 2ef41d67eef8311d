"""The slot: which calls this worker is in, what happens at their start and end."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from .events import EventLog
from .outbox import Outbox
from .wire import CORE_SECRET, SECRET_HEADER, http_client
from .worker_settings import DEFAULT_CALL_SECONDS, WorkerSettings

CONFIG_TIMEOUT = 5.0  # seconds for the bot's configuration at call start


class NoConfigError(Exception):
    """The bot's configuration could not be had; `status` is 404 (no such bot) or 502 (no usable answer)."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass
class Call:
    """One call in progress; `planned` seconds is None when the caller decides when it ends."""

    session_id: str
    bot_id: str
    route: str
    planned: float | None = None
    campaign: str = ""
    frames: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    started: float = field(default_factory=time.time)
    begun: float = field(default_factory=time.monotonic)

    @property
    def about(self) -> dict[str, Any]:
        """What the log says of its beginning; since `taken` the slot has not been idle."""
        return {"session": self.session_id, "route": self.route, "taken": self.started}

    @property
    def seconds(self) -> float:
        """How long the call has lasted."""
        return time.monotonic() - self.begun


class CallSlot:
    """Counts the calls of this worker and keeps their start and end rules."""

    def __init__(self, settings: WorkerSettings, log: EventLog, outbox: Outbox) -> None:
        self.settings = settings
        self.log = log
        self.outbox = outbox
        self.calls: dict[int, Call] = {}

    @property
    def busy(self) -> bool:
        """Whether another start must be refused."""
        return len(self.calls) >= self.settings.max_calls

    def take(self, call: Call, refusal: int) -> bool:
        """Reserve the slot for a call, or refuse it; every start met while busy is counted either way."""
        if self.busy:
            word = "refused" if self.settings.refuses_when_busy else "accepted"
            code = refusal if self.settings.refuses_when_busy else None
            self.log.write(f"start_while_busy_{word}", session=call.session_id, route=call.route, code=code)
            if self.settings.refuses_when_busy:
                return False
        self.calls[id(call)] = call
        return True

    def release(self, call: Call) -> None:
        """Free the slot without a call having happened."""
        self.calls.pop(id(call), None)

    async def configure(self, call: Call) -> float:
        """Fetch the bot's configuration and log the start; returns the longest length in seconds."""
        config = await self._fetch_config(call.bot_id)
        self.log.write("start", **call.about, bot=call.bot_id, planned=call.planned)
        return float(config.get("max_call_duration_seconds") or DEFAULT_CALL_SECONDS)

    def finish(self, call: Call, outcome: str, code: int | None = None) -> None:
        """End a call: recording, result, log line, and only then the slot is free.  Does nothing the second time."""
        if id(call) not in self.calls:
            return
        try:
            self._record(call)
            self.outbox.add(call.session_id, self._result(call, outcome))
            self.log.write(
                "cut" if outcome == "cut" else "end",
                session=call.session_id,
                route=call.route,
                code=code,
                outcome=outcome,
                planned=call.planned,
                seconds=round(call.seconds, 3),
                frames=call.frames,
            )
        finally:
            self.release(call)

    async def _fetch_config(self, bot_id: str) -> dict[str, Any]:
        if not self.settings.config_url:
            return {}
        url = f"{self.settings.config_url}/{bot_id}"
        try:
            async with http_client(url, CONFIG_TIMEOUT) as client:
                answer = await client.get(url, headers={SECRET_HEADER: CORE_SECRET})
            config = answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, OSError, json.JSONDecodeError) as error:
            raise NoConfigError(502, f"config_unavailable: {type(error).__name__}") from error
        if answer.status_code == 404:
            raise NoConfigError(404, "bot_not_found")
        if not isinstance(config, dict):
            raise NoConfigError(502, f"config_unavailable: {answer.status_code}")
        return config

    def _record(self, call: Call) -> None:
        if self.settings.recordings is not None:
            self.settings.recordings.mkdir(parents=True, exist_ok=True)
            (self.settings.recordings / f"{call.session_id}.wav").write_bytes(b"RIFF" + call.session_id.encode())

    def _result(self, call: Call, outcome: str) -> dict[str, Any]:
        return {
            "session_id": call.session_id,
            "bot_id": call.bot_id,
            "route": call.route,
            "campaign": call.campaign,
            "worker_id": self.settings.worker_id,
            "outcome": outcome,
            "started_at": call.started,
            "duration_seconds": round(call.seconds, 3),
            "frames": call.frames,
            "recording": f"{call.session_id}.wav",
        }


def new_session_id() -> str:
    """A session id for a caller who brought none."""
    return f"session-{uuid.uuid4().hex}"


def recording(settings: WorkerSettings, key: str) -> Path | None:
    """The recording with this (already checked) key, if this host has it."""
    path = settings.recordings / key if settings.recordings else None
    return path if path and path.is_file() else None
