"""One run of the program: what it tells as it goes, how it ended, and when it must end."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from .compose import Docker
from .errors import Interrupted
from .journal import check_fence, journal, now
from .stack import Stack


class Outcome(StrEnum):
    """What became of one service or slot."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    PENDING = "pending"
    """Left serving as it is; waits for calls to end or for a clear answer. A later run finishes it."""
    FAILED = "failed"


class Run:
    """The context of one mutating command. Safe to share between the threads of that command."""

    def __init__(self, stack: Stack, *, as_json: bool = False, fence: int | None = None) -> None:
        self.stack = stack
        self.docker = Docker(stack)
        self.as_json = as_json
        self.fence = fence
        self.stopping = threading.Event()
        self.outcomes: dict[str, tuple[Outcome, str]] = {}
        self.canaries: set[tuple[int, str]] = set()
        """Slots that passed a canary call in this run, with the label they carry."""
        self.telling = threading.Lock()

    def event(self, subject: str, event: str, detail: str = "") -> None:
        """One line of progress on standard output."""
        with self.telling:
            if self.as_json:
                print(json.dumps({"t": now(), "slot": subject, "event": event, "detail": detail}), flush=True)
            else:
                print(f"{subject}: {event}{': ' + detail if detail else ''}", flush=True)

    def changed(self, subject: str, what: str, **detail: Any) -> None:
        """A change was made: tell it and write it down."""
        journal(self.stack, what, subject, **detail)
        self.event(subject, what)

    def settle(self, subject: str, outcome: Outcome, detail: str = "") -> None:
        self.outcomes[subject] = (outcome, detail)
        if outcome is not Outcome.UNCHANGED:
            self.event(subject, outcome.value, detail)

    def failed(self) -> bool:
        return any(outcome is Outcome.FAILED for outcome, _ in self.outcomes.values())

    def guard(self) -> None:
        """Before each step that changes something: still wanted, and still the newest controller?"""
        if self.stopping.is_set():
            raise Interrupted("stopped by a signal; run it again to complete the work")
        check_fence(self.stack, self.fence)

    def pause(self, seconds: float) -> None:
        """Wait between two looks; Interrupted when a signal arrives."""
        if self.stopping.wait(seconds):
            raise Interrupted("stopped by a signal; run it again to complete the work")

    def wait_for(self, condition: Callable[[], bool], seconds: float, every: float = 0.2) -> bool:
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() >= until:
                return False
            self.pause(every)
        return True

    def catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())

    def exit_code(self) -> int:
        outcomes = {outcome for outcome, _ in self.outcomes.values()}
        return 1 if Outcome.FAILED in outcomes else 3 if Outcome.PENDING in outcomes else 0

    def finish(self, code: int, error: str | None = None) -> int:
        """The last line: the result. Returns the exit code."""
        if self.as_json:
            services = {key: {"outcome": o.value, "detail": d} for key, (o, d) in sorted(self.outcomes.items())}
            word = {0: "done", 3: "pending"}.get(code, "failed")
            result = {"result": {"exit": code, "word": word, "error": error, "services": services}}
            print(json.dumps(result), flush=True)
        elif error:
            print(f"slotctl: {error}", file=sys.stderr, flush=True)
        return code
