"""What a host that was built by hand says of itself: the typed answer of `facts/legacy.sh`. Pure data.

As in `callfleet.actual`: a value was read, None was read as absent, `Unknown` could not be told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from callfleet.actual import Listener, Memory, Unknown

_INSTANCE = re.compile(r"(?P<template>.+)@(?P<number>[0-9]{1,4})\.service")


@dataclass(frozen=True)
class Value:
    """One variable. `text` is None for a secret, of which only `mark` is known: equal marks mean equal values."""

    name: str
    text: str | None
    mark: str
    place: str

    @property
    def secret(self) -> bool:
        """Whether its value stayed on the host."""
        return self.text is None


@dataclass(frozen=True)
class EnvironmentFile:
    """One file of variables. `changed` is unix time; `unclear` counts lines that are no assignment of one line."""

    path: str
    values: Mapping[str, Value]
    changed: int | None = None
    mode: str = ""
    unclear: int = 0


@dataclass(frozen=True)
class Unit:
    """One service unit, by what `systemctl show` says of it."""

    name: str
    properties: Mapping[str, str]

    @property
    def template(self) -> str:
        """The template that it is a numbered instance of; empty for others."""
        match = _INSTANCE.fullmatch(self.name)
        return match["template"] if match else ""

    @property
    def number(self) -> int:
        """The instance's number; 0 for others."""
        match = _INSTANCE.fullmatch(self.name)
        return int(match["number"]) if match else 0

    @property
    def active(self) -> bool:
        """Whether it runs, or is about to."""
        return self.properties.get("ActiveState") in ("active", "activating", "reloading")

    @property
    def enabled(self) -> bool:
        """Whether it starts at boot."""
        return self.properties.get("UnitFileState", "").startswith(("enabled", "static", "generated"))

    @property
    def environment_files(self) -> tuple[str, ...]:
        """The files that it takes variables from, in their order."""
        return tuple(re.findall(r"(\S+) \(ignore_errors=(?:yes|no)\)", self.properties.get("EnvironmentFiles", "")))

    @property
    def since(self) -> int | None:
        """When it was started, in unix time."""
        value = self.properties.get("ActiveEnterTimestamp", "").removeprefix("@")
        return int(value) if value.isdigit() and int(value) else None

    @property
    def command(self) -> str:
        """What it runs."""
        match = re.search(r"argv\[\]=(.*?) ;", self.properties.get("ExecStart", ""))
        return match[1] if match else ""


@dataclass(frozen=True)
class Files:
    """A proxy's configuration: where it begins, and every small text file around it."""

    main: tuple[str, ...]
    texts: Mapping[str, str]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """One host. `inline` are the variables of units themselves.

    `address` is how it was reached, `addresses` are its own; `certificates` hold PEM of the first one.
    `sockets` are the socket files, `listening` the Unix sockets that somebody listens on; `datagrams` UDP listeners.
    """

    name: str
    address: str
    hostname: str | Unknown = field(default_factory=lambda: Unknown("was not asked"))
    memory: Memory | Unknown = field(default_factory=lambda: Unknown("was not asked"))
    cpus: int | Unknown = field(default_factory=lambda: Unknown("was not asked"))
    addresses: frozenset[str] | Unknown = field(default_factory=lambda: Unknown("was not asked"))
    listeners: tuple[Listener, ...] | Unknown = field(default_factory=lambda: Unknown("was not asked"))
    datagrams: tuple[Listener, ...] | Unknown = field(default_factory=lambda: Unknown("was not asked"))
    units: Mapping[str, Unit] | Unknown = field(default_factory=lambda: Unknown("was not asked"))
    environments: Mapping[str, EnvironmentFile | Unknown | None] | Unknown = field(default_factory=dict)
    inline: Mapping[str, EnvironmentFile] | Unknown = field(default_factory=dict)
    sockets: frozenset[str] | Unknown = field(default_factory=lambda: Unknown("was not asked"))
    listening: frozenset[str] | Unknown = field(default_factory=lambda: Unknown("was not asked"))
    nginx: Files | Unknown | None = None
    haproxy: Files | Unknown | None = None
    certificates: Mapping[str, bytes | Unknown | None] | Unknown = field(default_factory=dict)
    ours: bool | Unknown = False
    core_fleet: tuple[str, ...] | Unknown | None = None

    def unknowns(self) -> list[tuple[str, str]]:
        """The parts that could not be told, and why."""
        names = ("hostname", "memory", "cpus", "addresses", "listeners", "datagrams", "units", "environments", "inline",
                 "sockets", "listening", "nginx", "haproxy", "certificates", "ours", "core_fleet")  # fmt: skip
        parts = [(name.replace("_", " "), getattr(self, name)) for name in names]
        for files in (self.nginx, self.haproxy):
            if isinstance(files, Files):
                parts += [(path, Unknown("could not be read")) for path in files.unread]
        for held in (self.environments, self.certificates):
            if isinstance(held, Mapping):
                parts += list(held.items())
        return [(name, part.reason) for name, part in parts if isinstance(part, Unknown)]

    def environment(self, unit: Unit) -> dict[str, Value]:
        """A unit's variables: its own, then those of its files; the last one counts."""
        found: dict[str, Value] = {}
        if not isinstance(self.inline, Unknown) and unit.name in self.inline:
            found |= self.inline[unit.name].values
        if not isinstance(self.environments, Unknown):
            for path in unit.environment_files:
                held = self.environments.get(path)
                if isinstance(held, EnvironmentFile):
                    found |= held.values
        return found
