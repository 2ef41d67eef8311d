"""What a finding is, and the hosts that findings are about. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from callfleet.adopt.fleet import Machine, Workers
from callfleet.adopt.platform import FleetHost, Platform


class Weight(StrEnum):
    """How much a finding weighs."""

    CONTRADICTION = "contradiction"
    WEAKNESS = "weakness"


@dataclass(frozen=True)
class Side:
    """One of the sides: where it says so, and what. Holds no secret."""

    where: str
    says: str


@dataclass(frozen=True)
class Finding:
    """What disagrees. `host` is empty for what is about several."""

    kind: str
    weight: Weight
    host: str
    what: str
    sides: tuple[Side, ...]
    next: str


def contradiction(kind: str, host: str, what: str, sides: Sequence[Side], todo: str) -> Finding:
    """A finding that is to be put right; `todo` says how."""
    return Finding(kind, Weight.CONTRADICTION, host, what, tuple(sides), todo)


def weakness(kind: str, host: str, what: str, sides: Sequence[Side], todo: str) -> Finding:
    """A finding that stands in nobody's way."""
    return Finding(kind, Weight.WEAKNESS, host, what, tuple(sides), todo)


def fleet_hosts(platform: Platform) -> Iterator[tuple[FleetHost, Machine, Workers]]:
    """The fleet hosts that were read."""
    for one in platform.fleet_hosts:
        if one.machine is not None and one.machine.workers is not None:
            yield one, one.machine, one.machine.workers


def numbers(values: frozenset[int] | Sequence[int]) -> str:
    """`1-4, 6`."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts) or "none"
