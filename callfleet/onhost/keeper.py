"""The keeper: publishes a worker that Docker restarted, and removes the names of dead sockets. It never withdraws."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

from . import canary, metrics, sockets
from .compose import Container, Docker
from .errors import SlotError
from .journal import Busy, journal, locked
from .slots import is_declared, is_stopping, prepare, publish, unmark
from .stack import Stack, load
from .worker import ask

ROUND_SECONDS = 0.5
PROBE_SECONDS = 5.0
"""A crashed worker leaves its socket as it was; only a connection tells, and each shows as one to a drain. Looking at
all names is the square of the slots: 1.6 % of a core for 16 slots at every round, hence only as often as this."""
LONGEST_PAUSE_SECONDS = 15.0


def publish_ready(stack: Stack, docker: Docker, only: set[int] | None = None) -> dict[int, str]:
    """Publish every slot that may be: right answer, not drained, its label known to pass a canary call.

    Returns why the others are not; a reason that begins with "waits" may pass by itself. Run under the stack's lock.
    """
    reasons: dict[int, str] = {}
    proven = canary.proven(stack)
    containers: dict[str, list[Container]] | None = None
    for n in stack.numbers:
        if (only is not None and n not in only) or sockets.is_linked(stack, n):
            continue
        if is_declared(stack, n):
            reasons[n] = "declared drained"
            continue
        answer = ask(stack.own_socket(n), n, stack.health)
        if answer.calls is None:
            reasons[n] = f"waits for a good answer: {answer.problem}"
            continue
        containers = docker.containers() if containers is None else containers
        running = [c for c in containers.get(stack.service_of(n), []) if c.running]
        if len(running) != 1:
            reasons[n] = f"waits for its container: {len(running)} run"
        elif running[0].label not in proven:
            reasons[n] = "its label never passed a canary call here; run a converge"
        elif is_stopping(stack, n, running[0]):
            reasons[n] = "was being stopped by a run that did not end; run a converge"
        else:
            unmark(stack, n)
            publish(stack, n, running[0], "ready")
    return reasons


class Keeper:
    """The loop. Between changes it only looks at inodes: no process is started, no worker is asked."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.docker = Docker(stack)
        self.described = _written(stack)
        self.stopping = threading.Event()
        self.pauses: dict[int, tuple[sockets.Identity, float, float]] = {}
        """Slot -> its socket, when to look again (monotonic), how long the last pause was."""
        self.probed = time.monotonic()
        self.names: dict[int, tuple[str, str]] = {}

    def run(self) -> None:
        """Until `stopping` is set. A converge that holds the lock is left alone."""
        try:
            metrics.serve(self.stack)
        except SlotError as error:  # what is watched matters less than that it works
            print(f"keeper: no metrics: {error}", flush=True)
        _tell_systemd("READY=1")
        while not self.stopping.wait(ROUND_SECONDS):
            try:
                self.round()
            except SlotError as error:
                print(f"keeper: {error}", flush=True)

    def round(self) -> None:
        if (written := _written(self.stack)) != self.described:
            self.described = written
            self.reload()
        now = time.monotonic()
        thorough = now - self.probed >= PROBE_SECONDS
        if thorough:
            self.probed = now
        looked = self.stack.numbers if thorough else [n for n in self.stack.numbers if not self.is_settled(n)]
        stale = [n for n in looked if (self.is_dead if thorough else self.is_stale)(n)]
        due = {n for n in looked if self.is_due(n, now, thorough)}
        if not stale and not due:
            return
        try:
            with locked(self.stack):
                for n in stale:
                    self.drop(n)
                if due:
                    self.publish(due, now)
        except Busy:
            return

    def reload(self) -> None:
        """Labels and the number of slots may be new."""
        self.stack = load(self.stack.name, self.stack.root)
        self.docker = Docker(self.stack)

    def is_settled(self, n: int) -> bool:
        """Its public name leads to its present socket: the usual case, told with as little work as can be."""
        own, public = self.names.setdefault(n, (str(self.stack.own_socket(n)), str(self.stack.published_socket(n))))
        try:
            return os.lstat(own).st_ino == os.lstat(public).st_ino
        except OSError:
            return False

    def is_stale(self, n: int) -> bool:
        """It has a public name that does not lead to its present socket."""
        return os.path.lexists(self.stack.published_socket(n)) and not sockets.is_published(self.stack, n)

    def is_dead(self, n: int) -> bool:
        name = self.stack.published_socket(n)
        return os.path.lexists(name) and sockets.listening(name) is False

    def drop(self, n: int) -> None:
        """Remove public names behind which nobody listens. One that still accepts, even if it hangs, stays."""
        if self.is_dead(n) and sockets.unlink(self.stack, n):
            journal(self.stack, "stale name removed", self.stack.service_of(n))
            print(f"keeper: {self.stack.service_of(n)}: stale name removed", flush=True)

    def is_due(self, n: int, now: float, thorough: bool) -> bool:
        """It has a socket without its public name. The names at its siblings are looked at only now and then."""
        own, named = sockets.identity(self.stack.own_socket(n)), sockets.is_linked if thorough else sockets.is_published
        if own is None or named(self.stack, n) or is_declared(self.stack, n):
            self.pauses.pop(n, None)
            return False
        known = self.pauses.get(n)
        return known is None or known[0] != own or now >= known[1]

    def publish(self, due: set[int], now: float) -> None:
        self.reload()
        prepare(self.stack)
        due &= set(self.stack.numbers)
        reasons = publish_ready(self.stack, self.docker, due)
        for n in due:
            own = sockets.identity(self.stack.own_socket(n))
            if own is not None and n in reasons:
                known = self.pauses.get(n)
                pause = min(known[2] * 2, LONGEST_PAUSE_SECONDS) if known and known[0] == own else ROUND_SECONDS
                self.pauses[n] = (own, now + pause, pause)
                if known is None or known[0] != own:
                    print(f"keeper: {self.stack.service_of(n)}: {reasons[n]}", flush=True)
            else:
                self.pauses.pop(n, None)
                if n not in reasons:
                    print(f"keeper: {self.stack.service_of(n)}: published", flush=True)


def _written(stack: Stack) -> int:
    """When the stack's description was written, in nanoseconds; 0 when it is not there."""
    try:
        return os.stat(stack.root / "opt/stacks" / stack.name / "stack.json").st_mtime_ns  # noqa: PTH116 - every round
    except OSError:
        return 0


def _tell_systemd(text: str) -> None:
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        try:
            line.connect("\0" + path[1:] if path.startswith("@") else str(Path(path)))
            line.send(text.encode())
        except OSError:
            return
