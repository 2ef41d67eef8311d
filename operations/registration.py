"""Outbound registration: the API's list and the Dialler's, for hosts whose canary call succeeded."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation

from callfleet.pyinfra_adapter import carry_out
from operations.stack import converge_stack


@operation()
def core_fleet() -> Generator[FunctionCommand, None, None]:
    """Puts the merged list through the API and reads it back; foreign URLs are kept."""
    yield from carry_out("registration")


@operation()
def dialler() -> Generator[FunctionCommand, None, None]:
    """Recreates the Dialler with the new list, only while no call is in set-up."""
    yield from carry_out("dialler", converge_stack)
