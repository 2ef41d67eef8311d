"""A trial call to a worker over its own socket, and the record of what has passed one."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from .errors import SlotError
from .journal import now, read_json, write_json
from .stack import Stack
from .worker import ask

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
FRAME_BYTES = 320
"""20 ms of 8 kHz 16-bit sound."""
KEPT_CONFIGS = 16
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def call(stack: Stack, n: int) -> None:
    """Place a call to slot n: sound goes and comes, the worker says busy meanwhile and 0 afterwards. SlotError else."""
    spec, path = stack.canary, stack.own_socket(n)
    until = time.monotonic() + spec.timeout_seconds
    try:
        with WebSocket(path, spec.path.replace("{bot}", spec.bot), until) as line:
            for number in range(spec.frames):
                _exchange(line, number, spec.echo)
                if number == 0:
                    _expect_calls(stack, n, spec.busy_value, until, "during the canary call")
                time.sleep(spec.interval_seconds)
    except OSError as error:
        raise SlotError(f"canary call to slot {n}: {type(error).__name__} {error}") from error
    _expect_calls(stack, n, 0, max(until, time.monotonic() + 2), "after the canary call")


def _exchange(line: WebSocket, number: int, echo: bool) -> None:
    frame = bytes([number % 256]) * FRAME_BYTES
    line.send(BINARY, frame)
    if not echo and number > 0:
        return
    got = line.receive()
    if echo and got != frame:
        raise SlotError(f"canary call: frame {number} came back changed ({len(got)} bytes)")


def _expect_calls(stack: Stack, n: int, wanted: int, until: float, when: str) -> None:
    while True:
        answer = ask(stack.own_socket(n), n, stack.health)
        if answer.calls == wanted:
            return
        if time.monotonic() > until:
            got = answer.problem or f"{answer.calls} calls"
            raise SlotError(f"slot {n}: expected {wanted} calls {when}, got {got}")
        time.sleep(0.05)


class WebSocket:
    """The little of RFC 6455 that a call needs: text and binary frames, pings answered, one deadline for all."""

    def __init__(self, path: Path, target: str, until: float) -> None:
        self.until = until
        self.buffer = b""
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self._limit()
            self.socket.connect(str(path))
            self._open(target)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.send(CLOSE, struct.pack("!H", 1000))
            self.until = min(self.until, time.monotonic() + 1)
            while self._limit() and self.socket.recv(4096):
                pass
        except OSError:
            pass
        finally:
            self.socket.close()

    def send(self, kind: int, data: bytes) -> None:
        mask = os.urandom(4)
        size = len(data)
        head = bytes([0x80 | kind, 0x80 | size]) if size < 126 else struct.pack("!BBH", 0x80 | kind, 0xFE, size)
        body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        self._limit()
        self.socket.sendall(head + mask + body)

    def receive(self) -> bytes:
        """The next message; ConnectionError when the worker closes, TimeoutError when the time is over."""
        message = b""
        while True:
            first, size = self._take(2)
            size &= 0x7F
            if size == 126:
                size = struct.unpack("!H", self._take(2))[0]
            elif size == 127:
                size = struct.unpack("!Q", self._take(8))[0]
            if size > 1 << 20:
                raise ConnectionError(f"a frame of {size} bytes")
            data, kind = self._take(size), first & 0x0F
            if kind == CLOSE:
                raise ConnectionError(f"closed by the worker {data[:2].hex()} {data[2:].decode(errors='replace')}")
            if kind == PING:
                self.send(PONG, data)
            elif kind != PONG:
                message += data
                if first & 0x80:
                    return message

    def _open(self, target: str) -> None:
        key = base64.b64encode(os.urandom(16))
        lines = [f"GET {target} HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key.decode()}", "Sec-WebSocket-Version: 13", "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        while b"\r\n\r\n" not in self.buffer:
            self._read()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        status = head.split(b"\r\n")[0].decode(errors="replace")
        proof = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest())
        if " 101" not in status or proof.lower() not in head.lower():
            raise ConnectionError(f"the WebSocket was refused: {status}")

    def _take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._read()
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def _read(self) -> None:
        self._limit()
        data = self.socket.recv(65536)
        if not data or len(self.buffer) > 1 << 21:
            raise ConnectionError("the worker closed the connection")
        self.buffer += data

    def _limit(self) -> bool:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        self.socket.settimeout(left)
        return True


def proven(stack: Stack) -> set[str]:
    """The labels with which a worker of this host has passed a canary call."""
    value = read_json(stack.canary_file) or {}
    known: Any = value.get("proven", [value.get("config")])
    return {label for label in known if isinstance(label, str)} if value.get("ok") is True else set()


def record(stack: Stack, labels: set[str], slots: list[int]) -> None:
    """Write canary.json: `slots` have passed with `labels`. Earlier labels are kept in `proven`, the newest 16."""
    before = read_json(stack.canary_file) or {}
    known = dict(before.get("proven") or {})
    for label in labels:
        known.pop(label, None)
        known[label] = now()
    known = dict(list(known.items())[-KEPT_CONFIGS - stack.slots :])
    value = {"at": now(), "config": stack.worker_label, "ok": True, "slots": sorted(slots), "proven": known}
    write_json(stack.canary_file, value)
