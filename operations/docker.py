"""Docker engine: installed, held, configured without stopping what runs."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation

from callfleet.pyinfra_adapter import carry_out


@operation()
def engine() -> Generator[FunctionCommand, None, None]:
    """Merges daemon.json, never swaps one engine package for another, and turns live-restore on by a reload."""
    yield from carry_out("docker")
