"""What is asked for, what comes out, and what both are made of. Pure data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

UNKNOWN_DOMAIN, UNKNOWN_ADDRESS = "DOMAIN", "ADDRESS"
"""Stand where a value must be: validation refuses them and names the place."""


@dataclass(frozen=True)
class Wishes:
    """What the operator says. Empty: as it is found. `ssh` is the section of that name; `prefix` where secrets go.

    `names_known`: DNS names that lead somewhere as seen from the controller.
    """

    site: str
    stage: str = "prod"
    brand: str = ""
    domain: str = ""
    ssh: Mapping[str, Any] = field(default_factory=dict)
    secrets: str = ""
    release: str = ""
    longest_call: int = 600
    ingress: tuple[str, str] | None = None
    names_known: frozenset[str] = frozenset()
    hostnames: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where a secret lies today: on a host, in a variable of a file, in a whole file, or as certificate and key."""

    reference: str
    host: str
    paths: tuple[str, ...]
    variable: str = ""


@dataclass
class Inventory:
    """The site file's content, what is still to be done (place, what), notes, and where its secrets are to be had."""

    parts: dict[str, Any] = field(default_factory=dict)
    todo: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    images: tuple[str, ...] = ()
    marks: dict[str, str] = field(default_factory=dict)

    def do(self, place: str, what: str) -> None:
        """Something for the operator, once."""
        if (place, what) not in self.todo:
            self.todo.append((place, what))


def entries(fleets: Mapping[str, Any], hosts: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every host's entry."""
    yield from hosts.values()
    for fleet in fleets.values():
        yield from fleet["hosts"].values()
