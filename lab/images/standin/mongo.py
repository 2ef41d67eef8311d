"""Named stand-in for MongoDB: it listens where MongoDB would and answers a PING line.  It stores nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer lines until the peer goes; every answer says that this is not MongoDB."""
    try:
        while line := await reader.readline():
            word = "PONG" if line.strip() == b"PING" else "ERROR only PING is answered"
            writer.write(f"{word} (mongo stand-in)\n".encode())
            await writer.drain()
    except (ConnectionError, ValueError):
        pass
    finally:
        writer.close()


async def serve(host: str, port: int) -> None:
    """Listen until the process ends."""
    server = await asyncio.start_server(answer, host, port)
    async with server:
        await server.serve_forever()


def run() -> None:
    """Listen on HOST:PORT, by default loopback:27017; SIGTERM ends it."""
    loop = asyncio.new_event_loop()
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "27017"))
    task = loop.create_task(serve(host, port))
    loop.add_signal_handler(signal.SIGTERM, task.cancel)  # as PID 1 the default action would not happen
    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        loop.run_until_complete(task)
