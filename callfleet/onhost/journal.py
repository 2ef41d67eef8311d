"""Locks, the fence and the journal: who may change this host now, and what was changed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import SlotError
from .stack import Stack


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """Replace `path` in one step: a reader sees the old document or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with open(fresh, "w", opener=lambda p, flags: os.open(p, flags, mode)) as file:
        json.dump(value, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None when it is missing, broken or no object."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@contextlib.contextmanager
def locked(stack: Stack, kind: str = "", wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold /run/callfleet/<stack>.lock (work of any length), or <stack>.<kind>.lock; SlotError when another has it.

    kind "names" guards single publish and withdraw steps only, so that an operator's drain need not wait for a
    converge that waits for calls. The kernel frees both when their holder dies.
    """
    stack.lock_dir.mkdir(parents=True, exist_ok=True)
    path = stack.lock_dir / (f"{stack.name}.{kind}.lock" if kind else f"{stack.name}.lock")
    with path.open("a") as file:
        until = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise Busy(f"{path}: another run on {stack.name} holds it; wait for it") from None
                time.sleep(0.05)
        yield


class Busy(SlotError):  # noqa: N818 - a state of affairs, no error
    """Another run holds the lock."""


def check_fence(stack: Stack, fence: int | None) -> None:
    """Refuse a controller that was overtaken: its number is lower than the one in /etc/callfleet/fence.

    A higher number is written down; without a number (an operator on the host) nothing is checked. Call it under
    the lock, and again before each step of a long run.
    """
    if fence is None:
        return
    path = stack.mark_dir / "fence"
    try:
        known = int(path.read_text())
    except FileNotFoundError:
        known = 0
    except ValueError as error:
        raise SlotError(f"{path}: expected one whole number: {error}") from error
    if fence < known:
        raise SlotError(f"fence {fence} is stale: {path} says {known}, another controller has taken over; plan again")
    if fence > known:
        write_json(path, fence)


def journal(stack: Stack, what: str, subject: str = "", **detail: Any) -> None:
    """Append one line to /etc/callfleet/journal.jsonl: when, who ($CALLFLEET_WHO), for which plan, what, on what."""
    line = {
        "at": now(),
        "who": os.environ.get("CALLFLEET_WHO", "host"),
        "plan": os.environ.get("CALLFLEET_PLAN"),
        "stack": stack.name,
        "what": what,
        "subject": subject,
        **detail,
    }
    path = stack.mark_dir / "journal.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
        os.fsync(handle)
    finally:
        os.close(handle)
