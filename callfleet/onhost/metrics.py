"""The slots of a stack for Prometheus, over a Unix socket that the host proxy passes its metrics port on to.

Read when somebody asks, and kept for a few seconds, so that many askers cost no more than one.
"""

from __future__ import annotations

import http.server
import socketserver
import threading
import time
from collections.abc import Callable
from http import HTTPStatus

from .compose import Docker
from .errors import SlotError
from .slots import Slot, observe
from .stack import Stack, load
from .states import Word

PATH = "/metrics/slots"
FRESH_SECONDS = 5.0
HELP = {
    "callfleet_slot_state": "1 for the state that the slot is in.",
    "callfleet_slot_calls": "Calls that the worker says it has; absent where it does not say.",
    "callfleet_slot_drained": "1 where an operator declared the slot drained.",
    "callfleet_slots": "Call slots of the host, by state.",
    "callfleet_slots_read": "1 where the slots could be read.",
}


def text(stack: str, slots: dict[int, Slot] | None) -> str:
    """The exposition format, version 0.0.4. None: they could not be read. Pure."""
    rows: dict[str, list[str]] = {name: [] for name in HELP}
    rows["callfleet_slots_read"].append(_row("callfleet_slots_read", 0 if slots is None else 1, stack=stack))
    for n, slot in (slots or {}).items():
        labels = {"stack": stack, "slot": str(n)}
        rows["callfleet_slot_state"] += [
            _row("callfleet_slot_state", int(slot.word is word), **labels, state=word.value) for word in Word
        ]
        rows["callfleet_slot_drained"].append(_row("callfleet_slot_drained", int(slot.seen.declared), **labels))
        if slot.seen.calls is not None:
            rows["callfleet_slot_calls"].append(_row("callfleet_slot_calls", slot.seen.calls, **labels))
    if slots is not None:
        found = [slot.word for slot in slots.values()]
        rows["callfleet_slots"] = [
            _row("callfleet_slots", found.count(word), stack=stack, state=word.value) for word in Word
        ]
    lines = []
    for name, values in rows.items():
        if values:
            lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge", *values]
    return "\n".join(lines) + "\n"


def _row(name: str, value: int, **labels: str) -> str:
    # Names of stacks and states hold nothing that would have to be escaped.
    inside = ",".join(f'{key}="{said}"' for key, said in labels.items())
    return f"{name}{{{inside}}} {value}"


class Reading:
    """The slots as they were at most a few seconds ago; one reader at a time."""

    def __init__(self, stack: Stack) -> None:
        self.name, self.root = stack.name, stack.root
        self.lock = threading.Lock()
        self.at, self.said = -FRESH_SECONDS, ""

    def __call__(self) -> str:
        with self.lock:
            if time.monotonic() - self.at >= FRESH_SECONDS:
                self.said = text(self.name, self.read())
                self.at = time.monotonic()
            return self.said

    def read(self) -> dict[int, Slot] | None:
        """None when Docker does not answer: every slot would be unknown for that one reason."""
        try:
            stack = load(self.name, self.root)
            docker = Docker(stack)
            return observe(stack, docker, containers=docker.containers())
        except SlotError:
            return None


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 16

    def __init__(self, path: str, reading: Callable[[], str]) -> None:
        self.reading = reading
        super().__init__(path, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever asked went away: nothing to say."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = 10

    def do_GET(self) -> None:
        body = self.server.reading().encode() if self.path == PATH else b""
        self.send_response(HTTPStatus.OK if body else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "-"

    def log_message(self, format: str, *args: object) -> None:
        """No line for each question."""


def serve(stack: Stack) -> None:
    """Answer in the background until the process ends. SlotError when the socket cannot be made."""
    path = stack.metrics_socket
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        server = _Server(str(path), Reading(stack))
        path.chmod(0o666)  # the proxy is another user; there is nothing secret in it
    except OSError as error:
        raise SlotError(f"{path}: {error.strerror}") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
