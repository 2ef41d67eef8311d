"""The lock of a run: taken on every host that has changes before anything is written, given back at the end."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation

from callfleet.pyinfra_adapter import locked, unlocked


@operation()
def take() -> Generator[FunctionCommand, None, None]:
    """Refuses while another run is at work; a dead one's lock is taken over with a word about whose it was."""
    yield from locked()


@operation()
def give_back() -> Generator[FunctionCommand, None, None]:
    """Where a host failed or the run was ended, it has been given back already, or ends by its expiry."""
    yield from unlocked()
