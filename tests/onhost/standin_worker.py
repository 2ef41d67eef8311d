# ruff: noqa: T201, S324 - its log is looked at; RFC 6455 wants SHA-1
"""A stand-in for a call worker: one call, /health, an echoing WebSocket, all on its Unix socket.

Arguments: slot number, run directory, mode (ok, silent: never binds, bad-canary: refuses calls, mute: no echo).
The file slots/N/behave changes it while it runs: hang, wrong-id, error, calls=N. A call that a TERM cuts is written
to <run>/cut.
"""

import base64
import hashlib
import json
import os
import signal
import socketserver
import struct
import sys
import threading
import time
from pathlib import Path

N, RUN, MODE = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
HERE = RUN / "slots" / N
PATH = HERE / f"t_{N}.sock"
calls = threading.Semaphore(1)
state = {"calls": 0}


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline().decode()
        headers = {}
        while (raw := self.rfile.readline().decode().strip()) != "":
            key, _, value = raw.partition(":")
            headers[key.lower()] = value.strip()
        if "/health" in line:
            self.health()
        elif "/ws/" in line:
            self.call(headers["sec-websocket-key"])

    def health(self):
        behave = (HERE / "behave").read_text() if (HERE / "behave").exists() else ""
        if behave == "hang":
            time.sleep(600)
        shown = int(behave[6:]) if behave.startswith("calls=") else state["calls"]
        body = {
            "status": "ok",
            "worker_calls": shown,
            "worker_max": 1,
            "worker_id": "99" if behave == "wrong-id" else N,
        }
        self.answer("500 Oops" if behave == "error" else "200 OK", json.dumps(body))

    def answer(self, status, body=""):
        self.wfile.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
        )

    def call(self, key):
        if MODE == "bad-canary" or not calls.acquire(blocking=False):
            return self.answer("403 Forbidden")
        state["calls"] = 1
        try:
            proof = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            head = (
                f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {base64.b64encode(proof).decode()}"
            )
            self.wfile.write(f"HTTP/1.1 101 Switching Protocols\r\n{head}\r\n\r\n".encode())
            self.echo()
        finally:
            state["calls"] = 0
            calls.release()

    def echo(self):
        while first := self.rfile.read(2):
            size = first[1] & 0x7F
            wide = self.rfile.read(2) if size == 126 else b""
            size = struct.unpack("!H", wide)[0] if wide else size
            mask, data = self.rfile.read(4), self.rfile.read(size)
            if first[0] & 0x0F == 8:
                return
            if MODE != "mute":
                plain = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
                self.wfile.write(bytes([first[0], first[1] & 0x7F]) + wide + plain)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 16

    def handle_error(self, *_):
        pass


def stop(*_):
    if state["calls"]:
        with (RUN / "cut").open("a") as file:
            file.write(f"{N}\n")
    PATH.unlink(missing_ok=True)
    os._exit(0)


signal.signal(signal.SIGTERM, stop)
print(f"worker {N} starts", flush=True)
if MODE == "silent":
    time.sleep(600)
if MODE == "crash":
    sys.exit("no such bot")
PATH.unlink(missing_ok=True)
Server(str(PATH), Handler).serve_forever()
