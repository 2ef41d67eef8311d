"""The one error that the lab raises for people."""

from __future__ import annotations

from callfleet.errors import CallfleetError


class LabError(CallfleetError):
    """Something the lab cannot do here. `what` says it in one sentence, `hint` names the next command."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(f"{what}\n  next: {hint}" if hint else what)
        self.what = what
        self.hint = hint
