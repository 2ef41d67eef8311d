"""Verify by a second look: what was changed must now be as declared, and half registrations are named."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import context
from pyinfra.api import FunctionCommand, operation
from pyinfra.api.host import Host
from pyinfra.api.state import State

from callfleet.errors import CallfleetError
from callfleet.pyinfra_adapter import decide, fail, half_registrations, look_again, not_reached, run_of
from callfleet.pyinfra_remote import say


@operation()
def site() -> Generator[FunctionCommand, None, None]:
    """Probes a host that was changed once more; anything left to do that does not wait for a call is a failure."""
    host: Host = context.host
    decided, error = decide(host)
    if decided is None:
        yield FunctionCommand(fail, (error,), {})
        return
    if not decided.changes:
        host.noop("nothing was changed here")
        return
    yield FunctionCommand(_verify, (), {})


def _verify(state: State, host: Host) -> bool:
    run, half = run_of(host), half_registrations(host)
    try:
        left = look_again(host)
        unreached = not_reached(host)
    except CallfleetError as error:
        return fail(state, host, f"not verified: {error}")
    waiting = {line.partition(": ")[0] for line in run.pending}
    wrong = [f"not as declared after this run: {change}" for change in left if change.subject not in waiting]
    for line in [*wrong, *unreached]:
        say(host, line, "red")
    for line in run.pending:
        say(host, f"pending: {line}; finished by the next run")
    for line in half:
        say(host, line)
    return not wrong and not unreached
