"""Our mark, written last: who owns the host, at which release."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation

from callfleet.pyinfra_adapter import carry_out


@operation()
def write() -> Generator[FunctionCommand, None, None]:
    """A host that carries it was converged to the end."""
    yield from carry_out("mark")
