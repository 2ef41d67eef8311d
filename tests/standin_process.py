"""Run stand-ins as processes on this machine, for the tests beside this file."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

SOURCE = Path(__file__).parent.parent / "lab" / "images"
SECRET = {"X-CXBCore-Secret": "s3cret"}
READY_SECONDS = 60.0


class Standin:
    """A running stand-in: its process, how to ask it, and (for workers) its socket and event log.

    `role` is a role's name, or Python code that runs one in another way.
    """

    def __init__(self, role: str, base_url: str, uds: Path | None, env: dict[str, str]) -> None:
        self.uds = str(uds) if uds else None
        self.base_url = base_url
        self.log = Path(env["STANDIN_EVENT_LOG"]) if "STANDIN_EVENT_LOG" in env else None
        clean = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
        command = ["-c", role] if " " in role else ["-m", "standin", role]
        self.process = subprocess.Popen([sys.executable, *command], env={**clean, **env})
        self.http = httpx.Client(transport=httpx.HTTPTransport(uds=self.uds), base_url=base_url, timeout=60)

    def wait_ready(self, path: str = "/health") -> None:
        """Wait until it answers; fails when its process ends first."""
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, "the stand-in ended"
            try:
                if self.http.get(path).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("the stand-in does not answer")

    def stop(self) -> int:
        """SIGTERM and wait for the end; the exit code."""
        self.process.terminate()
        self.http.close()
        return self.process.wait(60)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What the event log says, optionally only some events."""
        assert self.log is not None
        lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [line for line in lines if not names or line["event"] in names]

    def wait_event(self, name: str, seconds: float = 60.0) -> dict[str, Any]:
        """The first event of this name, once it is there."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.events(name):
                return found[0]
            time.sleep(0.02)
        raise AssertionError(f"no {name} in {self.events()}")


@contextmanager
def running(role: str, base_url: str, uds: Path | None = None, ready: str = "/health", **env: str) -> Iterator[Standin]:
    """One stand-in, stopped at the end."""
    standin = Standin(role, base_url, uds, env)
    try:
        standin.wait_ready(ready)
        yield standin
    finally:
        if standin.process.poll() is None:
            standin.stop()


@contextmanager
def worker(directory: Path, number: int = 1, prefix: str = "", **env: str) -> Iterator[Standin]:
    """One core worker at the platform's fixed path, with its files in `directory`."""
    prefix = prefix or new_prefix()
    path = Path("/tmp") / f"{prefix}_{number}.sock"
    places = {
        "SOCKET": str(path),
        "CXBCORE_WORKERS": "1",
        "CORE_SECRET": SECRET["X-CXBCore-Secret"],
        "OUTBOX_DIR": str(directory / "outbox"),
        "RECORDINGS_DIR": str(directory / "recordings"),
        "STANDIN_EVENT_LOG": str(directory / "events.jsonl"),
    }
    try:
        with running("core-worker", "http://worker", path, **{**places, **env}) as standin:
            yield standin
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def api(directory: Path, **env: str) -> Iterator[Standin]:
    """One API, on a free port if PORT names none."""
    port = env.setdefault("PORT", str(free_port()))
    places = {"STATE_DIR": str(directory / "state"), "CORE_SECRET": SECRET["X-CXBCore-Secret"]}
    with running("api", f"http://127.0.0.1:{port}", **{**places, **env}) as standin:
        yield standin


def new_prefix() -> str:
    """A socket prefix that nobody else uses."""
    return f"t{uuid.uuid4().hex[:10]}"


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
