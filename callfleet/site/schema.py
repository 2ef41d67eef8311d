"""What `inventories/<site>.yml` may hold. `inventories/prod.yml` explains the keys to people; this is their check.

Each class is one mapping of the file. Nothing here looks at two places at once: `checks.py` does.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from callfleet.document import Strict, Text, expected, text, whole
from callfleet.secrets import EXPECTED, SecretRef, parse

FORMAT = 1

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_URL_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+(\?[A-Za-z0-9._~&=-]*)?")
_DNS = re.compile(rf"({_LABEL}\.)*{_LABEL}")


def _is_dns(value: str) -> bool:
    return len(value) <= 253 and bool(_DNS.fullmatch(value)) and not value.rpartition(".")[2].isdigit()


def _is_address(value: str) -> bool:
    try:
        return "%" not in value and bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def _is_ipv6(value: str) -> bool:
    return _is_address(value) and ipaddress.ip_address(value).version == 6


def _is_network(value: str) -> bool:
    try:
        return bool(ipaddress.ip_network(value))
    except ValueError:
        return False


def _is_url(value: str) -> bool:
    match = re.fullmatch(r"https?://([a-z0-9.-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?", value)
    if match is None or value.endswith("/"):
        return False
    return _is_dns(match[1]) or _is_address(match[1])


def _is_registry(value: str) -> bool:
    host, colon, port = value.partition(":")
    return (_is_dns(host) or _is_address(host)) and (
        not colon or (port.isascii() and port.isdigit() and 0 < int(port) < 65536)
    )


def _reference(value: object) -> SecretRef:
    if isinstance(value, SecretRef):
        return value
    try:
        return parse(value)
    except ValueError:
        raise expected(EXPECTED, "A secret is never written into a site file.") from None


def _distinct(value: object) -> object:
    """A list without repetition. What is not a list is left to the type's own check."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            if item in value[:index]:
                raise expected("each entry once", f"Entry {index + 1} of the list repeats an earlier one.")
    return value


def _given(value: object) -> object:
    """An empty section (`hosts:` with nothing below) is the same as none."""
    return {} if value is None else value


Name = Annotated[
    str,
    text(
        re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?").fullmatch,
        "a name of at most 40 lower-case letters, digits and inner hyphens",
    ),
]
DnsName = Annotated[str, text(_is_dns, "a host name in lower case such as calls.example.com")]
CertificateName = Annotated[
    str, text(lambda value: _is_dns(value.removeprefix("*.")), "a host name, or a wildcard such as *.example.com")
]
Address = Annotated[str, text(_is_address, "an IPv4 or IPv6 address")]
Address6 = Annotated[str, text(_is_ipv6, "an IPv6 address")]
Network = Annotated[
    str, text(_is_network, "a network such as 203.0.113.0/24", "Bits after the prefix must be zero; one host is /32.")
]
Url = Annotated[str, text(_is_url, "a URL such as https://api.example.com/api/v1/config, without a slash at its end")]
Port = Annotated[int, whole(1, 65535, "a port number")]
UrlPath = Annotated[str, text(lambda value: "?" not in value and bool(_URL_PATH.fullmatch(value)), "a path of a URL")]
JsonField = Annotated[
    str, text(re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch, "the name of a field in a JSON answer")
]
Reference = Annotated[SecretRef, BeforeValidator(_reference)]
SecretName = Annotated[
    str,
    text(re.compile(r"[a-z][a-z0-9_]{0,63}").fullmatch, "the name of a secret declared under `secrets`"),
]
Variable = Annotated[
    str, text(re.compile(r"[A-Z_][A-Z0-9_]*").fullmatch, "an environment variable's name in upper case")
]
VariableValue = Annotated[str, text(str.isprintable, "text on one line")]
FilePath = Annotated[str, text(lambda value: bool(value.strip()) and value.isprintable(), "a path")]
Boolean = Annotated[bool, Field(strict=True)]


class Ssh(Strict):
    """How to reach hosts; also the shape of a host's own exceptions, where `hostname` may differ from the address."""

    user: Annotated[
        str, text(re.compile(r"[a-z_][a-z0-9_.-]{0,31}").fullmatch, "a user name in lower case")
    ] | None = None  # fmt: skip
    port: Port | None = None
    key: FilePath | None = None
    known_hosts: FilePath | None = None
    config: FilePath | None = None
    connect_timeout_seconds: Annotated[int, whole(1, 600, "seconds")] | None = None


class HostSsh(Ssh):
    """SSH settings of one host."""

    hostname: Annotated[str, text(lambda v: _is_dns(v) or _is_address(v), "a host name or address")] | None = None


class Registry(Strict):
    """Where images come from. `password` names a secret; `ca` is a path."""

    address: Annotated[str, text(_is_registry, "host or host:port, without https://")]
    username: Text | None = None
    password: SecretName | None = None
    ca: FilePath | None = None


class Variables(Strict):
    """A container's own settings: plain ones, and ones whose value is a secret."""

    environment: dict[Variable, VariableValue] = Field(default_factory=dict)
    secret_environment: dict[Variable, SecretName] = Field(default_factory=dict)


class App(Strict):
    """The control plane, and the values that every host must agree on."""

    mongodb_db: (
        Annotated[
            str, text(re.compile(r"[A-Za-z0-9_-]{1,63}").fullmatch, "a database name of letters, digits, _ and -")
        ]
        | None
    ) = None
    api_name: DnsName | None = None
    console_name: DnsName | None = None
    config_url: Url | None = None
    result_url: Url | None = None
    vite_api_url: Url | None = None
    stores: Annotated[tuple[Literal["redis", "mongo", "minio"], ...], BeforeValidator(_distinct)] = (
        "redis",
        "mongo",
        "minio",
    )
    api: Variables = Variables()
    dialler: Variables = Variables()
    console: Variables = Variables()


class Core(Variables):
    """The call workers. Memory in MiB."""

    workers_default: Annotated[int, whole(1, 512)] | None = None
    worker_memory_mb: Annotated[int, whole(1, 65536, "MiB")] = 260
    reserve_memory_mb: Annotated[int, whole(0, 1048576, "MiB")] = 1024


class Canary(Strict):
    """The test call: where to and to which bot, how many frames it sends, whether they must come back unchanged
    (`echo`), and how many calls the worker must say that it has meanwhile (`busy`; 0 before and after).
    """

    path: Annotated[
        str,
        text(
            lambda value: value.count("{bot}") == 1 and bool(_URL_PATH.fullmatch(value.replace("{bot}", "x"))),
            "a WebSocket route such as /ws/{bot}, with {bot} once",
        ),
    ] = "/ws/{bot}"
    bot: Annotated[str, text(re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch, "a bot's id")] = "canary"
    frames: Annotated[int, whole(1, 1000)] = 10
    echo: Boolean = True
    busy: Annotated[int, whole(1, 1000, "calls")] = 1


# The statuses HAProxy can retry on; a refusal with any other code would reach the caller although a worker is free.
REFUSALS = (401, 403, 408, 425, 429, 500, 502, 503, 504)


def _refusal(value: object) -> int:
    if isinstance(value, bool) or value not in REFUSALS:
        raise expected(f"an HTTP status that the proxy can retry on: {', '.join(map(str, REFUSALS))}")
    return int(str(value))


class Calls(Strict):
    """What may be assumed about calls. Seconds and bytes."""

    max_seconds: Annotated[int, whole(10, 86400, "seconds")] = 600
    drain_deadline_seconds: Annotated[int, whole(0, 86400, "seconds")] = 900
    refusal_codes: Annotated[
        tuple[Annotated[int, BeforeValidator(_refusal)], ...], BeforeValidator(_distinct)
    ] = (429, 403)  # fmt: skip
    largest_body_bytes: Annotated[int, whole(1024, 16777216, "bytes")] = 65536
    tunnel_timeout_seconds: Annotated[int, whole(5, 86400, "seconds")] | None = None
    canary: Canary = Canary()

    @property
    def silence_seconds(self) -> int:
        """After how much silence both ways a call is given up: as declared, else 60 to 120 by the longest call.

        It is what frees the slot of a caller who vanished, so it does not grow with calls of hours.
        """
        return self.tunnel_timeout_seconds or min(120, max(60, self.max_seconds * 15 // 100))


class InternalAuthority(Strict):
    """The site's own authority, by which internal certificates are made. `certificate` is a path; without it, the
    authority is one of those in `tls.internal.ca`. `key` is needed where certificates are made, and nowhere else."""

    key: Reference
    certificate: FilePath | None = None


class InternalTls(Strict):
    """Mutual TLS between the ingress and the fleet hosts. `ca` is a path to a certificate, the others are secrets."""

    ca: FilePath
    authority: InternalAuthority | None = None
    ingress: Reference
    hosts: dict[Name, Reference] = Field(default_factory=dict)


class Acme(Strict):
    """An authority that issues public certificates by ACME (RFC 8555), and the names whose certificates it issues.

    Names whose entries under `tls.certificates` are the same file share one certificate. `ca` is a path: the authority
    behind the directory's own certificate, where it is a private one.
    """

    directory: Annotated[
        str, text(lambda v: v.startswith("https://") and _is_url(v), "the https URL of an ACME directory")
    ]  # fmt: skip
    contact: Annotated[
        str, text(re.compile(r"[^@\s:]+@[A-Za-z0-9.-]+").fullmatch, "a mail address")
    ] | None = None  # fmt: skip
    account_key: Reference
    names: Annotated[tuple[DnsName, ...], BeforeValidator(_distinct), Field(min_length=1)]
    ca: FilePath | None = None


class Tls(Strict):
    """Certificates by the public names they cover, each one PEM file with chain and key.

    What ends in less than `renew_days` is to be renewed.
    """

    certificates: dict[CertificateName, Reference] = Field(default_factory=dict)
    ca_bundle: FilePath | None = None
    internal: InternalTls | None = None
    acme: Acme | None = None
    renew_days: Annotated[int, whole(1, 365, "days")] = 30


class Ingress(Strict):
    """The carrier-facing name."""

    public_name: DnsName | None = None


class HostPorts(Strict):
    """Ports that one host uses instead of the site's."""

    front: Port | None = None
    fleet: Port | None = None
    mtls: Port | None = None


class SitePorts(HostPorts):
    """Ports that the site uses instead of those in group_data. `metrics` and `metrics_shared` have no default."""

    fleet_shared: Port | None = None
    api: Port | None = None
    console: Port | None = None
    dialler_health: Port | None = None
    redis: Port | None = None
    mongo: Port | None = None
    minio: Port | None = None
    metrics: Port | None = None
    metrics_shared: Port | None = None


class OpenPort(Strict):
    """A port that the firewall leaves open for something that is not ours."""

    port: Port
    protocol: Literal["tcp", "udp"] = "tcp"
    comment: Text
    sources: Annotated[tuple[Network, ...], Field(alias="from")] = ("0.0.0.0/0", "::/0")


def _roles(value: object) -> object:
    if isinstance(value, list) and "fleet" in value:
        raise expected("ingress or app", "A host is a fleet host by standing under fleets.<fleet>.hosts.")
    return _distinct(value)


class HostEntry(Strict):
    """One machine. Memory in MiB, as the machine has it."""

    address: Address
    address6: Address6 | None = None
    roles: Annotated[tuple[Literal["ingress", "app"], ...], BeforeValidator(_roles)] = ()
    memory_mb: Annotated[int, whole(256, 16777216, "MiB")] | None = None
    ports: HostPorts = HostPorts()
    ssh: HostSsh = HostSsh()
    open_ports: tuple[OpenPort, ...] = ()


class FleetHostEntry(HostEntry):
    """A machine with call workers."""

    workers: Annotated[int, whole(1, 512)] | None = None
    public_name: DnsName | None = None


class FleetEntry(Strict):
    """Fleet hosts that belong together."""

    public_name: DnsName | None = None
    hosts: dict[Name, FleetHostEntry]


class Firewall(Strict):
    """Who may connect."""

    callers: tuple[Network, ...] = ("0.0.0.0/0", "::/0")
    ssh_from: tuple[Network, ...] = ("0.0.0.0/0", "::/0")


class Metrics(Strict):
    """Who may read the metrics port."""

    sources: Annotated[tuple[Network, ...], Field(alias="from")] = ()


class ShipTo(Strict):
    """Where the hosts send their logs, in the syslog format of RFC 5424."""

    host: Annotated[str, text(lambda v: _is_dns(v) or _is_address(v), "a host name or address")]
    port: Port
    protocol: Literal["tcp", "udp"] = "tcp"


class Logs(Strict):
    """What happens to logs besides being kept on each host for a while."""

    ship_to: ShipTo | None = None


class Docker(Strict):
    """Where Docker comes from."""

    source: Literal["debian", "docker"] = "debian"


# Packages whose upgrade would stop what carries calls, by where Docker comes from: each is held, and may be pinned.
HELD_PACKAGES = {
    "debian": ("containerd", "runc", "docker.io", "docker-cli", "docker-compose"),
    "docker": ("containerd.io", "docker-ce", "docker-ce-cli", "docker-compose-plugin"),
}
HELD_PROXY = "haproxy"
PackageVersion = Annotated[
    str, text(re.compile(r"[0-9][A-Za-z0-9.+:~-]*").fullmatch, "a Debian package version such as 3.0.11-1+deb13u2")
]


class SiteFile(Strict):
    """The whole file."""

    callfleet: Literal[1]
    site: Name
    stage: Literal["lab", "local", "staging", "prod"]
    brand: Name
    brand_overrides: dict[str, Any] = Field(default_factory=dict)
    domain: DnsName
    release: FilePath | None = None
    ssh: Ssh = Ssh()
    secrets: Annotated[dict[SecretName, Reference], BeforeValidator(_given)] = Field(default_factory=dict)
    registry: Registry | None = None
    app: App = App()
    core: Core = Core()
    calls: Calls = Calls()
    ingress: Ingress | None = None
    tls: Tls = Tls()
    fleets: Annotated[dict[Name, FleetEntry], BeforeValidator(_given)] = Field(default_factory=dict)
    hosts: Annotated[dict[Name, HostEntry], BeforeValidator(_given)] = Field(default_factory=dict)
    ports: SitePorts = SitePorts()
    firewall: Firewall = Firewall()
    metrics: Metrics = Metrics()
    logs: Logs = Logs()
    docker: Docker = Docker()
    versions: Annotated[dict[str, PackageVersion], BeforeValidator(_given)] = Field(default_factory=dict)
    names: Annotated[dict[DnsName, Address], BeforeValidator(_given)] = Field(default_factory=dict)
