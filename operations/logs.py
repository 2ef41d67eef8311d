"""Log shipping: the host's and its containers' lines go to the site's target, where it has one."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation

from callfleet.pyinfra_adapter import carry_out


@operation()
def ship() -> Generator[FunctionCommand, None, None]:
    """Lays rsyslog's configuration down and starts it anew; touches no container and no log driver."""
    yield from carry_out("logs")
