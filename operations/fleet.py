"""Fleet hosts: workers, one call each, and the host proxy."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation
from pyinfra.api.host import Host

from callfleet.plan import ConcernPlan
from callfleet.pyinfra_adapter import carry_out, run_of
from operations.stack import converge_stack


@operation()
def converge() -> Generator[FunctionCommand, None, None]:
    """Swaps idle slots, leaves busy ones serving and reports them; a canary call decides who may register."""
    yield from carry_out("fleet", _converge)


def _converge(host: Host, todo: ConcernPlan) -> None:
    run_of(host).canary = False
    converge_stack(host, todo)
    run_of(host).canary = True
