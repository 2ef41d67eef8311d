"""What is known about a slot, as one word with a promise. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Process(StrEnum):
    """What Docker says about the slot's container."""

    RUNNING = "running"
    STOPPED = "stopped"
    """Missing, created, exited, dead, or between two restarts."""
    UNCLEAR = "unclear"
    """Docker did not answer, the container is paused, or there are several."""


class Word(StrEnum):
    """The state of a slot; each word promises what its line says, and nothing more."""

    IDLE = "idle"
    """Published, and the worker says 0 calls. A call may come at any moment."""
    ON_A_CALL = "on a call"
    """Published, and the worker says it has a call."""
    DRAINING = "draining"
    """Withdrawn: no new call comes, but the worker has a call or someone is connected."""
    DRAINED = "drained"
    """Withdrawn, 0 calls, nobody connected. May be stopped."""
    DEAD = "dead"
    """No process and no listener. May be stopped, started and replaced."""
    UNPUBLISHED = "unpublished"
    """Runs, was never published since its start, nobody is connected. Cannot have a call, so it may be stopped."""
    UNKNOWN = "unknown"
    """No answer, an error or a strange one. Counts as busy."""


MAY_STOP = frozenset({Word.DRAINED, Word.DEAD, Word.UNPUBLISHED})


@dataclass(frozen=True)
class Seen:
    """One reading of a slot. None always means: could not be read."""

    process: Process
    listening: bool | None
    """Whether something accepts on the slot's own socket."""
    calls: int | None
    """What the worker says; None for no answer, an error or a strange answer."""
    connections: int | None
    """Established or waiting to be accepted, over all network namespaces."""
    published: bool
    """A name of this slot exists where the proxy looks."""
    served: bool
    """It has been published since its start."""
    declared: bool
    """An operator declared it drained."""
    foreign: bool = False
    """Somebody else than this worker accepts on its public name."""


def word(seen: Seen) -> Word:
    """The state of a slot. Doubt gives UNKNOWN, which is busy."""
    if seen.foreign:
        return Word.UNKNOWN
    if seen.process is Process.STOPPED:
        return Word.DEAD if seen.listening is False and seen.connections == 0 else Word.UNKNOWN
    if seen.process is not Process.RUNNING:
        return Word.UNKNOWN
    if seen.calls:
        return Word.ON_A_CALL if seen.published else Word.DRAINING
    if seen.published:
        return Word.UNKNOWN if seen.calls is None else Word.IDLE
    if seen.connections is None:
        return Word.UNKNOWN
    if seen.calls is None:
        # A worker that never came up must not block its own repair: nobody could ever reach it.
        never_reached = not seen.served and seen.connections == 0
        return Word.UNPUBLISHED if never_reached else Word.UNKNOWN
    if seen.connections > 0:
        return Word.DRAINING
    return Word.DRAINED if seen.served or seen.declared else Word.UNPUBLISHED
