"""A lab and its hosts as values: names, addresses and places, all derived from the lab's name, index and host list."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from lab import paths
from lab.errors import LabError
from lab.locks import locked

DEFAULT_NAME = "lab"
DEFAULT_SUITE = "trixie"
DEFAULT_BRAND = "cxbridge"
SUITES = ("trixie", "bookworm")
HUB = "hub"
FLEET = "eu1"
NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
MAX_INDEX = 254
MAX_HOSTS = 200
HUB_OCTET = 10
FIRST_FLEET_OCTET = 11
REGISTRY_PORT = 5000


@dataclass(frozen=True)
class LabHost:
    """One throwaway host. Its addresses do not change over reboots."""

    lab: str
    index: int
    name: str
    octet: int
    suite: str

    @property
    def address(self) -> str:
        """IPv4 address."""
        return f"10.77.{self.index}.{self.octet}"

    @property
    def address6(self) -> str:
        """IPv6 address, reachable from the lab's hosts and from the controller."""
        return f"fd77:0:0:{self.index}::{self.octet}"

    @property
    def machine(self) -> str:
        """Name of the container; at most 12 characters, because `vb-<machine>` is a network interface."""
        return f"{self.index}-{self.name}"

    @property
    def interface(self) -> str:
        """Our side of the host's network cable."""
        return f"vb-{self.machine}"

    @property
    def directory(self) -> Path:
        """Everything on disk that belongs to the host."""
        return paths.labs() / self.lab / "hosts" / self.name

    @property
    def root(self) -> Path:
        """The host's file system, mounted while it runs."""
        return self.directory / "root"

    @property
    def upper(self) -> Path:
        """What differs from the cached root filesystem."""
        return self.directory / "upper"

    @property
    def ssh_key(self) -> Path:
        """Private key of root and ops on the host."""
        return paths.labs() / self.lab / "ssh" / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The lab's pinned host keys."""
        return paths.labs() / self.lab / "ssh" / "known_hosts"

    @property
    def label(self) -> str:
        """Control group of the host's processes, below every hierarchy's root."""
        return f"{label(self.lab)}/{self.name}"

    @property
    def bridge(self) -> str:
        """The lab's bridge."""
        return f"cfl{self.index}"

    @property
    def gateway(self) -> str:
        """The controller's address on the lab's bridge."""
        return f"10.77.{self.index}.1"


@dataclass(frozen=True)
class Lab:
    """A lab: `index` decides its bridge and subnets, `host_names` has the hub first.

    The hosts of a `legacy` one come up as production was before callfleet (`lab.legacy`), under `brand`'s names.
    """

    name: str
    index: int
    suite: str
    host_names: tuple[str, ...]
    legacy: bool = False
    brand: str = DEFAULT_BRAND

    @classmethod
    def load(cls, name: str = DEFAULT_NAME) -> Lab:
        """The lab as `up` recorded it. Raises LabError when there is none of that name."""
        check_name(name)
        record = paths.labs() / name / "lab.json"
        try:
            data: dict[str, Any] = json.loads(record.read_text())
        except FileNotFoundError as error:
            raise LabError(f"there is no lab named {name}", f"callfleet lab up --name {name}") from error
        # Older records say nothing of the last two.
        legacy, brand = data.get("legacy", False), data.get("brand", DEFAULT_BRAND)
        return cls(data["name"], data["index"], data["suite"], tuple(data["hosts"]), legacy, brand)

    def save(self) -> None:
        """Record the lab; readers see the old or the new record, never half."""
        data: dict[str, Any] = {"name": self.name, "index": self.index, "suite": self.suite, "hosts": self.host_names}
        data |= {"legacy": self.legacy, "brand": self.brand}
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        candidate = self.directory / "lab.json.new"
        candidate.write_text(json.dumps(data) + "\n")
        candidate.replace(self.directory / "lab.json")

    @property
    def directory(self) -> Path:
        """Everything on disk that belongs to the lab."""
        return paths.labs() / self.name

    @property
    def site(self) -> str:
        """Name of the lab's site file; `lab-<name>` unless the name begins with `lab`, so that git ignores it."""
        return self.name if self.name == "lab" or self.name.startswith("lab-") else f"lab-{self.name}"

    @property
    def domain(self) -> str:
        """Domain of every name in the lab."""
        return "lab.example.com" if self.name == DEFAULT_NAME else f"{self.name}.lab.example.com"

    @property
    def bridge(self) -> str:
        """The lab's bridge on the controller."""
        return f"cfl{self.index}"

    @property
    def gateway(self) -> str:
        """The controller's address on the bridge."""
        return f"10.77.{self.index}.1"

    @property
    def gateway6(self) -> str:
        """The same for IPv6."""
        return f"fd77:0:0:{self.index}::1"

    @property
    def subnet(self) -> str:
        """The hosts' IPv4 network."""
        return f"10.77.{self.index}.0/24"

    @property
    def subnet6(self) -> str:
        """The hosts' IPv6 network."""
        return f"fd77:0:0:{self.index}::/64"

    @property
    def hosts(self) -> tuple[LabHost, ...]:
        """The hub, then the fleet hosts."""
        return tuple(self._host(position, name) for position, name in enumerate(self.host_names))

    @property
    def hub(self) -> LabHost:
        """The host with ingress, application and registry."""
        return self.hosts[0]

    @property
    def fleet_hosts(self) -> tuple[LabHost, ...]:
        """The hosts that carry calls; on a legacy lab of one host that is the hub."""
        return self.hosts if self.one_box else self.hosts[1:]

    @property
    def one_box(self) -> bool:
        """Whether everything is on the hub."""
        return self.legacy and len(self.host_names) == 1

    @property
    def ssh_key(self) -> Path:
        """Private key of root and ops on every host."""
        return self.hub.ssh_key

    @property
    def known_hosts(self) -> Path:
        """Pinned host keys by name and address."""
        return self.hub.known_hosts

    @property
    def inventory(self) -> Path:
        """The site file; its pyinfra inventory has the suffix .py, its pins .release.yml."""
        return paths.INVENTORIES / f"{self.site}.yml"

    @property
    def registry(self) -> str:
        """Address of the registry, by IP so that no DNS is needed anywhere."""
        return f"{self.hub.address}:{REGISTRY_PORT}"

    def host(self, name: str) -> LabHost:
        """One host by name. Raises LabError naming the ones there are."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"lab {self.name} has no host {name}; it has {', '.join(self.host_names)}")

    def secret(self, name: str) -> Path:
        """File of a generated secret: core_secret, registry_password, api_admin_token."""
        return self.directory / "secrets" / name

    def tls(self, name: str) -> Path:
        """File below the lab's certificates, such as `ca.pem` or `calls.lab.example.com.pem`."""
        return self.directory / "tls" / name

    def _host(self, position: int, name: str) -> LabHost:
        octet = HUB_OCTET if position == 0 else FIRST_FLEET_OCTET + position - 1
        return LabHost(self.name, self.index, name, octet, DEFAULT_SUITE if position == 0 else self.suite)


def label(lab: str) -> str:
    """The label of everything a lab has on this machine."""
    return f"callfleet-lab-{lab}"


def check_name(name: str) -> None:
    """Raises LabError for a name that could not be part of paths, addresses and DNS names."""
    if not NAME.fullmatch(name) or name.endswith("-"):
        raise LabError(f"{name!r} is no name for a lab; expected a lower-case letter, then letters, digits or dashes")


def host_names(count: int) -> tuple[str, ...]:
    """`hub`, `eu1-a`, `eu1-b`, ... for this many hosts in all."""
    if not 1 <= count <= MAX_HOSTS:
        raise LabError(f"a lab has 1 to {MAX_HOSTS} hosts, not {count}")
    letters = [*ascii_lowercase, *("".join(pair) for pair in product(ascii_lowercase, repeat=2))]
    return (HUB, *(f"{FLEET}-{letter}" for letter in letters[: count - 1]))


def allocate(name: str, hosts: int, suite: str, *, legacy: bool = False, brand: str | None = None) -> Lab:
    """The recorded lab of that name grown to `hosts`, or a new one with an index that no other lab has.

    Raises LabError when the recorded one is of another kind: bare hosts do not become legacy ones.
    """
    check_name(name)
    with locked(paths.state() / "index.lock"):
        if (paths.labs() / name / "lab.json").exists():
            known = Lab.load(name)
            names = max(known.host_names, host_names(hosts), key=len)
            _check_kind(known, names, legacy, brand)
            grown = replace(known, host_names=names)
        else:
            grown = Lab(name, _free_index(name), suite, host_names(hosts), legacy, brand or DEFAULT_BRAND)
        grown.save()
    return grown


def _check_kind(known: Lab, names: tuple[str, ...], legacy: bool, brand: str | None) -> None:
    again = f"callfleet lab down --name {known.name}, or another --name"
    if legacy and not known.legacy:
        raise LabError(f"lab {known.name} has bare hosts already", again)
    if brand not in (None, known.brand):
        raise LabError(f"lab {known.name} has the brand {known.brand}", again)
    if known.one_box and len(names) > 1:
        raise LabError(f"lab {known.name} is a legacy site of one host, which does not grow", again)


def all_names() -> list[str]:
    """Names of the labs that have a record or a directory."""
    found = paths.labs().iterdir() if paths.labs().is_dir() else ()
    return sorted(entry.name for entry in found if entry.is_dir() and NAME.fullmatch(entry.name))


def _free_index(name: str) -> int:
    taken = {Lab.load(other).index for other in all_names() if (paths.labs() / other / "lab.json").exists()}
    wanted = range(MAX_INDEX + 1) if name == DEFAULT_NAME else range(1, MAX_INDEX + 1)
    for index in wanted:
        if index not in taken:
            return index
    raise LabError(f"all {MAX_INDEX} lab networks are in use", "callfleet lab down --all")
