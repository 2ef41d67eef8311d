"""The front: native HAProxy, checked by itself before it loads a configuration."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation

from callfleet.pyinfra_adapter import carry_out


@operation()
def front() -> Generator[FunctionCommand, None, None]:
    """Brings the proxy up with the fleet hosts it has already; loads by a reload, calls go on in the old process."""
    yield from carry_out("front")


@operation()
def register() -> Generator[FunctionCommand, None, None]:
    """Adds the fleet hosts whose canary call succeeded."""
    yield from carry_out("ingress")
