"""Read slots, publish and withdraw them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from . import sockets
from .compose import STOPPED, Container, Docker
from .errors import SlotError
from .journal import journal, locked, now, read_json, write_json
from .stack import Stack
from .states import MAY_STOP, Process, Seen, Word, word
from .worker import Answer, ask

NAMES_LOCK_SECONDS = 30.0
READINGS_APART_SECONDS = 0.25
"""A call may be between connect() and accept(): two readings this far apart must agree."""


@dataclass(frozen=True)
class Slot:
    """One reading of a slot, with what it was concluded from."""

    n: int
    word: Word
    seen: Seen
    container: Container | None
    problem: str | None

    @property
    def label(self) -> str | None:
        return self.container.config if self.container else None


def prepare(stack: Stack) -> None:
    """Make the directories below /run/<stack>; tmpfiles.d makes them at boot, this repairs them."""
    for directory in (stack.published_dir, stack.swap_dir, stack.record_dir, stack.run_dir / "slots"):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for n in stack.numbers:
        stack.slot_dir(n).mkdir(mode=0o755, exist_ok=True)
        if stack.slot_dir(n).stat().st_uid != stack.worker_uid and os.geteuid() == 0:
            os.chown(stack.slot_dir(n), stack.worker_uid, stack.worker_uid)
    if stack.proxy:
        stack.proxy.admin_socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def observe(
    stack: Stack,
    docker: Docker,
    numbers: Collection[int] | None = None,
    containers: dict[str, list[Container]] | None = None,
) -> dict[int, Slot]:
    """Read slots: all wanted ones and all that exist beyond, or the given ones. Never fails: doubt is `unknown`.

    `containers` spares a question to Docker whose answer the caller has just got.
    """
    try:
        containers = docker.containers() if containers is None else containers
    except SlotError as error:
        containers, trouble = None, str(error)
    else:
        trouble = ""
    if numbers is None:
        beyond = {stack.number_of(service) for service in containers or {}}
        numbers = {*stack.numbers, *(n for n in beyond if n)}
    try:
        rows: list[sockets.Row] | None = sockets.rows() if numbers else []
    except SlotError as error:
        rows, trouble = None, str(error)

    def read(n: int) -> Slot:
        mine = None if containers is None else containers.get(stack.service_of(n), [])
        return _read(stack, n, mine, rows, trouble)

    with ThreadPoolExecutor(max_workers=16) as pool:
        return dict(zip(sorted(numbers), pool.map(read, sorted(numbers)), strict=True))


def _read(stack: Stack, n: int, mine: list[Container] | None, rows: list[sockets.Row] | None, trouble: str) -> Slot:
    running = [c for c in mine or [] if c.status not in STOPPED]
    container = next(iter(reversed(running or mine or [])), None)
    own = sockets.identity(stack.own_socket(n))
    connections = 0 if rows is not None else None
    if rows is not None and own is not None:
        connections = sockets.connections(stack, n, rows)
    if mine is None or len(running) > 1 or any(not c.running for c in running):
        process = Process.UNCLEAR
    else:
        process = Process.RUNNING if running else Process.STOPPED
    served = container is not None and _served(stack, n, container)
    if process is Process.STOPPED or own is None:
        listening = False if own is None else sockets.listening(stack.own_socket(n))
        answer = Answer(None, "no process" if process is Process.STOPPED else "no socket")
        if not listening:
            # With its name gone a running worker may still have calls; without a process it cannot.
            connections = None if own is None and served and process is not Process.STOPPED else 0
    else:
        listening = None
        answer = ask(stack.own_socket(n), n, stack.health)
    published, foreign = _public_name(stack, n, own)
    seen = Seen(
        process=process,
        listening=listening,
        calls=answer.calls,
        connections=connections,
        published=published,
        served=served,
        declared=is_declared(stack, n),
        foreign=foreign,
    )
    problem = answer.problem or (trouble or "connections could not be read" if connections is None else None)
    if len(running) > 1:
        problem = f"{len(running)} containers run for this slot"
    if foreign:
        problem = f"another process listens on {stack.published_socket(n)}"
    return Slot(n, word(seen), seen, container, problem if mine is not None else trouble)


def _public_name(stack: Stack, n: int, own: sockets.Identity | None) -> tuple[bool, bool]:
    """Whether a call could come by the slot's public name, and whether somebody else would get it.

    A name that leads to another socket than the worker's is a dead one until the keeper replaces it, or stolen.
    """
    name = stack.published_socket(n)
    if not os.path.lexists(name):
        return False, False
    if own is not None and sockets.identity(name) == own:
        return True, False
    foreign = sockets.listening(name) is not False
    return foreign, foreign


def _served(stack: Stack, n: int, container: Container) -> bool:
    """Whether this start of the worker was ever published, by either of two signs."""
    record = read_json(stack.record_dir / str(n))
    if record is None:
        return (stack.record_dir / str(n)).exists()  # there is one and we cannot read it: take it as yes
    own = sockets.identity(stack.own_socket(n))
    same_start = (record.get("container"), record.get("started")) == (container.id, container.started)
    return same_start or (own is not None and record.get("socket") == list(own))


def publish(stack: Stack, slot: int, container: Container, why: str) -> bool:
    """Let the proxy find the slot. False, and nothing done, when an operator declared it drained."""
    with locked(stack, "names", NAMES_LOCK_SECONDS):
        if is_declared(stack, slot):
            return False
        own = sockets.identity(stack.own_socket(slot))
        if own is None:
            raise SlotError(f"slot {slot} has no socket at {stack.own_socket(slot)}")
        was = sockets.is_published(stack, slot)
        # Written first: a crash between the two must not make a reached worker look never reached.
        record = {"at": now(), "container": container.id, "started": container.started, "socket": list(own)}
        write_json(stack.record_dir / str(slot), record)
        sockets.link(stack, slot)
    if not was:
        journal(stack, "published", stack.service_of(slot), why=why, config=container.config)
    return True


def relink(stack: Stack) -> None:
    """Show the published slots to siblings whose directories are new. Publishes nothing that was not."""
    for n in stack.numbers:
        with locked(stack, "names", NAMES_LOCK_SECONDS):
            if sockets.is_published(stack, n) and not is_declared(stack, n):
                sockets.link(stack, n)


def withdraw(stack: Stack, slot: int, why: str) -> bool:
    """Hide the slot from the proxy and its siblings; its call goes on. True when it was published."""
    with locked(stack, "names", NAMES_LOCK_SECONDS):
        removed = sockets.unlink(stack, slot)
    if removed:
        journal(stack, "withdrawn", stack.service_of(slot), why=why)
    return removed


def may_stop(stack: Stack, docker: Docker, n: int, settle_seconds: float = 0.0) -> tuple[bool, Slot]:
    """Whether a withdrawn slot is proven to carry nothing: two readings of the same start agree.

    Within `settle_seconds` someone still connected (a health poll that just ends) is waited for, a call is not.
    """
    until = time.monotonic() + settle_seconds
    before = observe(stack, docker, [n])[n]
    while True:
        time.sleep(READINGS_APART_SECONDS)
        after = observe(stack, docker, [n])[n]
        if {before.word, after.word} <= MAY_STOP and before.container == after.container:
            return not after.seen.published, after
        if after.seen.calls or time.monotonic() >= until:
            return False, after
        before = after


def declare(stack: Stack, n: int, reason: str) -> None:
    """Record the operator's drain and withdraw the slot; nothing but `undeclare` ends it, a reboot neither."""
    value = {"at": now(), "reason": reason, "who": os.environ.get("CALLFLEET_WHO", "host")}
    with locked(stack, "names", NAMES_LOCK_SECONDS):
        fresh = not is_declared(stack, n)
        if fresh:
            write_json(stack.drained_dir / str(n), value)
        sockets.unlink(stack, n)
    if fresh:
        journal(stack, "drain declared", stack.service_of(n), reason=reason)


def undeclare(stack: Stack, n: int) -> bool:
    with locked(stack, "names", NAMES_LOCK_SECONDS):
        try:
            (stack.drained_dir / str(n)).unlink()
        except FileNotFoundError:
            return False
    journal(stack, "drain ended", stack.service_of(n))
    return True


def is_declared(stack: Stack, n: int) -> bool:
    return (stack.drained_dir / str(n)).exists()


def mark(stack: Stack, n: int, step: str, container: Container | None) -> None:
    """Note that a run has slot n out. Left behind by a crash: keeper and converge read it."""
    write_json(stack.swap_dir / str(n), {"at": now(), "step": step, "container": container.id if container else None})


def unmark(stack: Stack, n: int) -> None:
    (stack.swap_dir / str(n)).unlink(missing_ok=True)


def is_stopping(stack: Stack, n: int, container: Container) -> bool:
    """A run that did not end had already begun to stop exactly this container."""
    value = read_json(stack.swap_dir / str(n)) or {}
    return value.get("step") == "stopping" and value.get("container") == container.id


def forget(stack: Stack, n: int) -> None:
    """Remove what is kept about a slot that no longer exists."""
    for path in (stack.record_dir / str(n), stack.swap_dir / str(n), stack.drained_dir / str(n)):
        path.unlink(missing_ok=True)
    shutil.rmtree(stack.slot_dir(n), ignore_errors=True)
