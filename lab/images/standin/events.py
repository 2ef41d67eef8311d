"""The worker's event log: what happened to which call, in one file for all workers of a host.

JSON lines; each line is one O_APPEND write, so lines of several processes never mix.  `t` is wall-clock Unix time.

    boot, sigterm                 the process
    start, end, cut               a call began; ended by itself or by the caller; ended because the process stops
    start_while_busy_refused      a start met a busy worker and was refused with `code`
    start_while_busy_accepted     the same with the refusal switched off: a doubled call (its `start` follows)
    refused                       a start was refused for another reason (`code`, `why`)
                                  `start` and `refused` say since when (`taken`) the slot was not idle
    dispatch_rejected             a 429 or 404 to /livekit/dispatch: in production this hung up a caller
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path


class EventLog:
    """Counts events and appends them to the shared file, if there is one."""

    def __init__(self, path: Path | None, worker_id: str) -> None:
        self.worker_id = worker_id
        self.counts: Counter[str] = Counter()
        self._file: int | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, event: str, **details: object) -> None:
        """Record one event now.  Safe in a signal handler: one counter and one write."""
        self.counts[event] += 1
        if self._file is None:
            return
        line = {"t": time.time(), "worker": self.worker_id, "pid": os.getpid(), "event": event, **details}
        os.write(self._file, json.dumps(line).encode() + b"\n")
