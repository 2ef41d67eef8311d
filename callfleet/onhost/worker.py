"""Ask a worker how many calls it has. Only a complete, plausible answer counts."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from .stack import Health

LARGEST_ANSWER = 65536


@dataclass(frozen=True)
class Answer:
    """`calls` is None when the answer is missing or strange; `problem` then says why."""

    calls: int | None
    problem: str | None = None


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def ask(path: Path, n: int, health: Health) -> Answer:
    """What the worker at `path` says, at the latest after `health.answer_seconds`, whatever it does."""
    seconds = health.answer_seconds
    connection = UnixConnection(path, seconds)
    cut = threading.Timer(seconds, _cut, [connection])  # a worker that drips bytes must not hold us
    cut.daemon = True
    cut.start()
    try:
        connection.request("GET", health.path, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read(LARGEST_ANSWER + 1)
        return judge(response.status, body, n, health)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Answer(None, f"no answer: {type(error).__name__} {error}".strip())
    finally:
        cut.cancel()
        connection.close()


def judge(status: int, body: bytes, n: int, health: Health) -> Answer:
    """Whether an answer is that of slot n and says how many calls it has. Pure."""
    if status != 200:
        return Answer(None, f"answered {status}")
    if len(body) > LARGEST_ANSWER:
        return Answer(None, "answered more than 64 KiB")
    try:
        value = json.loads(body)
    except ValueError:
        return Answer(None, "did not answer JSON")
    if not isinstance(value, dict) or value.get("status") != "ok":
        return Answer(None, "did not answer status ok")
    if value.get(health.id_field) != str(n):
        return Answer(None, f"{health.id_field} is {value.get(health.id_field)!r}, expected {str(n)!r}")
    calls = value.get(health.calls_field)
    if not isinstance(calls, int) or isinstance(calls, bool) or calls < 0:
        return Answer(None, f"{health.calls_field} is {calls!r}, expected a whole number")
    return Answer(calls)


def _cut(connection: UnixConnection) -> None:
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
