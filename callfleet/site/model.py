"""A site as the rest of callfleet sees it: hosts with everything decided, and no `None` that means a default."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from callfleet.document import Place, shown
from callfleet.errors import Problem
from callfleet.release import Release
from callfleet.secrets import Secret, SecretRef, resolve
from callfleet.site.defaults import Brand, Defaults, Ports
from callfleet.site.schema import (
    App,
    Calls,
    Core,
    Docker,
    Firewall,
    Logs,
    Metrics,
    OpenPort,
    Registry,
    SiteFile,
    Tls,
)

_DOCUMENTATION = [
    ipaddress.ip_network(each) for each in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]
_EXAMPLE_DOMAINS = ("example.com", "example.net", "example.org", "example")


@dataclass(frozen=True)
class SshSettings:
    """How to reach one host. Paths are absolute; without `key` and `config`, agent and OpenSSH decide."""

    hostname: str
    port: int
    user: str
    key: Path | None
    known_hosts: Path
    config: Path | None
    connect_timeout_seconds: int


@dataclass(frozen=True)
class ListenPorts:
    """The TCP ports that a host opens to the network; None where it does not have the role.

    `http` answers challenges of an ACME authority, which always asks at that port.
    """

    ssh: int
    front: int | None
    fleet: int | None
    mtls: int | None
    http: int | None = None
    front_metrics: int | None = None
    fleet_metrics: int | None = None


@dataclass(frozen=True)
class Host:
    """One machine. `roles` holds `fleet`, `ingress`, `app`; `workers` is 0 and `public_name` None without `fleet`."""

    name: str
    address: str
    address6: str | None
    roles: frozenset[str]
    fleet: str | None
    workers: int
    memory_mb: int | None
    public_name: str | None
    ports: ListenPorts
    ssh: SshSettings
    open_ports: tuple[OpenPort, ...]

    @property
    def url(self) -> str | None:
        """The base URL under which the API and the Dialler call this fleet host."""
        if self.public_name is None:
            return None
        port = "" if self.ports.fleet == 443 else f":{self.ports.fleet}"
        return f"https://{self.public_name}{port}"

    @property
    def place(self) -> Place:
        """Where it stands in the site file."""
        return ("fleets", self.fleet, "hosts", self.name) if self.fleet else ("hosts", self.name)

    @property
    def addresses(self) -> tuple[str, ...]:
        """All its addresses."""
        return (self.address,) if self.address6 is None else (self.address, self.address6)


@dataclass(frozen=True)
class Fleet:
    """Fleet hosts that belong together; `public_name` is their own name at the ingress, if they have one."""

    name: str
    public_name: str | None
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Site:
    """A checked site. `declared` is the site file as it is written; prefer what is decided here."""

    path: Path
    declared: SiteFile
    defaults: Defaults
    brand: Brand
    release: Release
    release_path: Path
    ports: Ports
    hosts: tuple[Host, ...]
    fleets: tuple[Fleet, ...]
    lines: Mapping[Place, int] = field(repr=False)

    @property
    def name(self) -> str:
        """The site's name."""
        return self.declared.site

    @property
    def stage(self) -> str:
        """lab, local, staging or prod."""
        return self.declared.stage

    @property
    def domain(self) -> str:
        """The domain that default names are made from."""
        return self.declared.domain

    @property
    def base_dir(self) -> Path:
        """The folder that relative paths of the site file start at."""
        return self.path.parent

    @property
    def fleet_hosts(self) -> tuple[Host, ...]:
        """Hosts with call workers, in the order of the file."""
        return tuple(host for host in self.hosts if "fleet" in host.roles)

    @property
    def ingress_hosts(self) -> tuple[Host, ...]:
        """Hosts that answer the carrier-facing name."""
        return tuple(host for host in self.hosts if "ingress" in host.roles)

    @property
    def front_hosts(self) -> tuple[Host, ...]:
        """Hosts with the native proxy: those that answer the carrier-facing name, and the one of API and Console."""
        return tuple(host for host in self.hosts if host.roles & {"ingress", "app"})

    @property
    def challenge_name(self) -> str:
        """A name that every front knows, to which a fleet host without one sends an ACME authority."""
        return self.ingress_name if self.ingress_hosts else self.api_name

    @property
    def app_host(self) -> Host | None:
        """The host of API, Console and the one Dialler, if this site has it."""
        return next((host for host in self.hosts if "app" in host.roles), None)

    def host(self, name: str) -> Host:
        """A host by name. KeyError if there is none."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Host]:
        return {host.name: host for host in self.hosts}

    @property
    def fleet_urls(self) -> tuple[str, ...]:
        """Every fleet host's base URL: FLEET_URLS, and the API's core_fleet setting."""
        return tuple(host.url for host in self.fleet_hosts if host.url)

    def image(self, name: str) -> str:
        """The full reference of an image by its name in the release file. KeyError if it is not there."""
        registry = self.declared.registry
        return self.release.reference(name, registry.address if registry else None)

    @property
    def required_images(self) -> tuple[str, ...]:
        """The images that this site's roles need."""
        return required_images(self.declared, self.brand, self.defaults)

    def secret_ref(self, name: str) -> SecretRef:
        """The reference behind a secret's name. KeyError if it is not declared."""
        return self.declared.secrets[name]

    def secret(self, name: str) -> Secret:
        """The value behind a secret's name, resolved now. SecretError if it cannot be had."""
        return self.resolve(self.secret_ref(name))

    def resolve(self, ref: SecretRef) -> Secret:
        """The value behind any reference of the site file, a certificate's for example."""
        return resolve(ref, self.base_dir)

    def file(self, path: str) -> Path:
        """A path of the site file (ca, ca_bundle) as an absolute one."""
        return (self.base_dir / Path(path).expanduser()).absolute()

    def certificate_for(self, public_name: str) -> SecretRef:
        """The certificate that covers a public name: its own, or the wildcard of its level. KeyError if none does."""
        return self.tls.certificates[covering(public_name, self.tls.certificates)]

    def public_names(self, host: Host) -> tuple[str, ...]:
        """Every name that a host answers TLS for."""
        return public_names(self.declared, host.roles, host.public_name)

    @property
    def ingress_name(self) -> str:
        """The carrier-facing name."""
        return ingress_name(self.declared)

    @property
    def api_name(self) -> str:
        """The API's public name."""
        return self.app.api_name or f"api.{self.domain}"

    @property
    def console_name(self) -> str:
        """The Console's public name."""
        return self.app.console_name or f"console.{self.domain}"

    @property
    def api_url(self) -> str:
        """The API's base URL."""
        app = self.app_host
        port = app.ports.front if app else 443
        return f"https://{self.api_name}" if port == 443 else f"https://{self.api_name}:{port}"

    @property
    def config_url(self) -> str:
        """CONFIG_URL, the same for every worker."""
        return self.app.config_url or f"{self.api_url}/api/v1/config"

    @property
    def result_url(self) -> str:
        """RESULT_URL, where workers post call results."""
        return self.app.result_url or f"{self.api_url}/api/v1/call-results"

    @property
    def vite_api_url(self) -> str:
        """VITE_API_URL, which the Console is built for."""
        return self.app.vite_api_url or self.api_url

    @property
    def mongodb_db(self) -> str | None:
        """MONGODB_DB; always set where there is an app host."""
        return self.app.mongodb_db

    @property
    def app(self) -> App:
        """The declared `app` section."""
        return self.declared.app

    @property
    def core(self) -> Core:
        """The declared `core` section."""
        return self.declared.core

    @property
    def calls(self) -> Calls:
        """The declared `calls` section."""
        return self.declared.calls

    @property
    def tls(self) -> Tls:
        """The declared `tls` section."""
        return self.declared.tls

    @property
    def registry(self) -> Registry | None:
        """The declared `registry` section."""
        return self.declared.registry

    @property
    def firewall(self) -> Firewall:
        """The declared `firewall` section."""
        return self.declared.firewall

    @property
    def metrics(self) -> Metrics:
        """The declared `metrics` section; `ports` says on which ports."""
        return self.declared.metrics

    @property
    def logs(self) -> Logs:
        """The declared `logs` section."""
        return self.declared.logs

    @property
    def docker(self) -> Docker:
        """The declared `docker` section."""
        return self.declared.docker

    @property
    def versions(self) -> Mapping[str, str]:
        """The declared `versions` section: held package to exact version."""
        return self.declared.versions

    @property
    def names(self) -> Mapping[str, str]:
        """Static names (DNS name to address) for sites whose names no DNS server knows."""
        return self.declared.names

    def environment_refuses(self) -> list[Problem]:
        """Why nothing may be connected to yet, although the site is valid: what shipped files must have edited.

        Empty when it may. Addresses and domains that are reserved for documentation belong to nobody: connecting to
        them can only hang, and orders for certificates or DNS would go astray.
        """
        found: list[tuple[Place, str, str]] = []
        if self.stage in ("staging", "prod"):
            found += [(place, name, "a name of your own") for place, name in self._declared_names() if is_example(name)]
        for host in self.hosts:
            for key, address in (("address", host.address), ("address6", host.address6)):
                if address and is_documentation(address):
                    found.append(((*host.place, key), address, "the host's own address"))
        return [
            Problem(self.path, shown(place), expected, got=f'"{value}"', line=self.lines.get(place))
            for place, value, expected in found
        ]

    def _declared_names(self) -> Iterator[tuple[Place, str]]:
        """Every DNS name that the file spells out."""
        yield ("domain",), self.domain
        if self.registry:
            yield ("registry", "address"), self.registry.address.partition(":")[0]
        if self.declared.ingress and self.declared.ingress.public_name:
            yield ("ingress", "public_name"), self.declared.ingress.public_name
        for key in ("api_name", "console_name"):
            if name := getattr(self.app, key):
                yield ("app", key), name
        for name in self.tls.certificates:
            yield ("tls", "certificates", name), name
        for host in self.fleet_hosts:
            if host.public_name and (*host.place, "public_name") in self.lines:
                yield (*host.place, "public_name"), host.public_name
        for fleet in self.fleets:
            if fleet.public_name:
                yield ("fleets", fleet.name, "public_name"), fleet.public_name


def is_documentation(address: str) -> bool:
    """Whether an address is reserved for documentation."""
    parsed = ipaddress.ip_address(address)
    return any(parsed in network for network in _DOCUMENTATION)


def is_example(domain: str) -> bool:
    """Whether a domain is reserved for documentation."""
    return any(domain == each or domain.endswith(f".{each}") for each in _EXAMPLE_DOMAINS)


def covering(public_name: str, certificates: Mapping[str, object]) -> str:
    """The entry of `certificates` that covers a name. KeyError if none does."""
    if public_name in certificates:
        return public_name
    wildcard = f"*.{public_name.partition('.')[2]}"
    if wildcard in certificates:
        return wildcard
    raise KeyError(public_name)


def ingress_name(declared: SiteFile) -> str:
    """The carrier-facing name of a site file."""
    return (declared.ingress and declared.ingress.public_name) or f"calls.{declared.domain}"


def public_names(declared: SiteFile, roles: frozenset[str], own: str | None) -> tuple[str, ...]:
    """The names that a host with these roles answers TLS for."""
    names = [own] if own else []
    if "ingress" in roles:
        names.append(ingress_name(declared))
        names.extend(fleet.public_name for fleet in declared.fleets.values() if fleet.public_name)
    if "app" in roles:
        names.append(declared.app.api_name or f"api.{declared.domain}")
        names.append(declared.app.console_name or f"console.{declared.domain}")
    return tuple(names)


def required_images(declared: SiteFile, brand: Brand, defaults: Defaults) -> tuple[str, ...]:
    """The images that the roles of a site file need, in the order of the release file."""
    entries = [*declared.hosts.values(), *(host for fleet in declared.fleets.values() for host in fleet.hosts.values())]
    roles = {role for entry in entries for role in entry.roles}
    images = [brand.images.core_worker] if any(fleet.hosts for fleet in declared.fleets.values()) else []
    if entries:
        images.append(defaults.common_images.proxy)
    if "app" in roles:
        images += [brand.images.api, brand.images.dialler, brand.images.console]
        images += [getattr(defaults.common_images, store) for store in declared.app.stores]
    return tuple(images)
