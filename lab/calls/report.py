"""What a run of calls saw: one Report per call, one Summary per run."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Report:
    """What happened to one call.  Times are seconds, `began_at` since 1970; not `opened`: `refused` code or `error`."""

    session: str
    opened: bool = False
    refused: int | None = None
    error: str = ""
    began_at: float = 0.0
    answer_seconds: float = 0.0
    frames_sent: int = 0
    frames_echoed: int = 0
    gaps: list[str] = field(default_factory=list)
    worst_round_trip: float = 0.0
    closed_early: bool = False
    close_code: int | None = None

    @property
    def answered_at(self) -> float:
        """When it was opened, refused or failed, by the clock that the hosts' logs go by."""
        return self.began_at + self.answer_seconds

    @property
    def clean(self) -> bool:
        """Opened, no gap, and ended by this driver."""
        return self.opened and not self.gaps and not self.closed_early


@dataclass
class Summary:
    """All calls of one run; `driver_lag` is the longest time in which this process did not run when it should."""

    calls: list[Report]
    driver_lag: float = 0.0

    @property
    def opened(self) -> int:
        """Calls that were answered with a WebSocket."""
        return sum(call.opened for call in self.calls)

    @property
    def refused(self) -> dict[int, int]:
        """Refused calls by HTTP status; 0 stands for calls that got no HTTP answer (see their `error`)."""
        return dict(Counter(call.refused or 0 for call in self.calls if not call.opened and call.answer_seconds))

    @property
    def gaps(self) -> list[str]:
        """Every gap of every call, with the call's session."""
        return [f"{call.session}: {gap}" for call in self.calls for gap in call.gaps]

    @property
    def closed_early(self) -> list[Report]:
        """Calls that the other side ended."""
        return [call for call in self.calls if call.closed_early]

    @property
    def worst_round_trip(self) -> float:
        """The longest round trip of any frame."""
        return max((call.worst_round_trip for call in self.calls), default=0.0)

    @property
    def clean(self) -> bool:
        """Every call opened, without a gap, and was ended by this driver."""
        return bool(self.calls) and all(call.clean for call in self.calls)

    def as_json(self) -> dict[str, Any]:
        """The whole run as one JSON document."""
        totals = {"opened": self.opened, "refused": self.refused, "gaps": len(self.gaps), "clean": self.clean}
        measured = {"worst_round_trip": round(self.worst_round_trip, 4), "driver_lag": round(self.driver_lag, 4)}
        return {**totals, "closed_early": len(self.closed_early), **measured, "calls": [asdict(c) for c in self.calls]}
