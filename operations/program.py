"""The host-side slot program and the units that use it."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation

from callfleet.pyinfra_adapter import carry_out


@operation()
def lay_down() -> Generator[FunctionCommand, None, None]:
    """Lays the files down; running programs are started anew by their own units' rule."""
    yield from carry_out("program")
