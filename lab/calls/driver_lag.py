"""This process' own delay."""

from __future__ import annotations

import asyncio

LAG_PERIOD = 0.05  # seconds between two looks


class DriverLag:
    """Measures in which time this process' loop did not run, so that no call is blamed for it."""

    def __init__(self) -> None:
        self.total = 0.0
        self.worst = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look, on the running loop."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + LAG_PERIOD
        self._timer = loop.call_at(self._due, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        late = asyncio.get_running_loop().time() - self._due
        self.worst = max(self.worst, late)
        if late > LAG_PERIOD:
            self.total += late
        self.start()
