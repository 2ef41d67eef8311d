"""The front: native HAProxy, checked by itself before it loads a configuration."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation
from pyinfra.api.host import Host

from callfleet.plan import ConcernPlan
from callfleet.pyinfra_adapter import carry_out, run_of
from callfleet.pyinfra_remote import run_script
from callfleet.script import script


@operation()
def front() -> Generator[FunctionCommand, None, None]:
    """Brings the proxy up with the fleet hosts it has already.

    Servers and certificates change in the running process. The rest takes a reload; calls go on in the old one.
    """
    yield from carry_out("front", _carry_out)


@operation()
def register() -> Generator[FunctionCommand, None, None]:
    """Adds the fleet hosts whose canary call succeeded."""
    yield from carry_out("ingress", _carry_out)


def _carry_out(host: Host, todo: ConcernPlan) -> None:
    lines = run_script(host, script(todo.changes))
    run_of(host).pending += [line.removeprefix("pending ") for line in lines if line.startswith("pending ")]
