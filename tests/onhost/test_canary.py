"""The trial call against a server by other hands: frames of every size, pings, refusals."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, unix_serve

from callfleet.onhost.canary import BINARY, TEXT, WebSocket


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    """An echo server of the `websockets` library; /close hangs up, /fragments answers in pieces after a ping."""
    path, loop, ready = tmp_path / "s", asyncio.new_event_loop(), threading.Event()

    async def handler(line: ServerConnection) -> None:
        target = line.request.path if line.request else ""
        async for message in line:
            if target == "/close":
                await line.close(4000, "busy")
            elif target == "/fragments":
                await line.ping()
                await line.send([b"one ", b"two ", b"three"])
            elif target != "/silent":
                await line.send(message)

    async def serve() -> None:
        async with unix_serve(handler, str(path)):
            ready.set()
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    yield path
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    loop.close()


def opened(path: Path, target: str, seconds: float = 20) -> WebSocket:
    return WebSocket(path, target, time.monotonic() + seconds)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 320, 65535])
def test_frames_of_every_length_come_back(server: Path, size: int) -> None:
    """Both length forms that we send, and what the server sends."""
    with opened(server, "/echo") as line:
        for kind in (BINARY, TEXT):
            line.send(kind, b"x" * size)
            assert line.receive() == b"x" * size


def test_a_ping_is_answered_and_fragments_are_joined(server: Path) -> None:
    """Control frames between the pieces do not disturb the message."""
    with opened(server, "/fragments") as line:
        line.send(BINARY, b"go")
        assert line.receive() == b"one two three"


def test_a_hang_up_and_silence_are_errors(server: Path) -> None:
    """A worker that accepts and then closes is not up; nor is one that says nothing until the deadline."""
    with opened(server, "/close") as line:
        line.send(BINARY, b"go")
        with pytest.raises(ConnectionError, match="busy"):
            line.receive()
    before = time.monotonic()
    with opened(server, "/silent", 1) as line:
        line.send(BINARY, b"go")
        with pytest.raises(TimeoutError):
            line.receive()
    assert time.monotonic() - before < 10
