"""Host baseline: packages, log limits, kernel limits, no surprise restarts."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation

from callfleet.pyinfra_adapter import carry_out


@operation()
def prepare() -> Generator[FunctionCommand, None, None]:
    """Reads packages, files and the journal's start time; does nothing where they are as declared."""
    yield from carry_out("baseline")
