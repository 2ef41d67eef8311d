"""What a host must be, as plain values.

An expected host is a list of *concerns*, each an ordered list of items. The order inside a concern is the order in
which its changes are carried out, which is why a daemon's configuration can stand before the package that starts the
daemon. Nothing here knows pyinfra, SSH or the clock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

# Loads certificate and key as a proxy will: parsed, belonging together, strong enough for this host's OpenSSL.
CERTIFICATE_CHECK = (
    "python3 -I -c 'import ssl, sys; ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(sys.argv[1])' {path}"
)

AGREED = "/run/callfleet-ingress/agreed.json"
"""Which process of the front runs what which file says, written by the program that brought it there as it ran."""

MADE = "/etc/callfleet/stacks/{}/made.json"
"""What each container of a stack was really made from, by service and label, written by the program that made it."""


def unit_check(path: str) -> str:
    """The check of a file in /etc/systemd/system: a template is read as an instance of it, a drop-in with its unit.

    What systemd only warns about and then leaves out, such as a misspelt key, is refused too.
    """
    own = path.removeprefix("/etc/systemd/system/")
    unit, drop_in, _ = own.partition(".d/")
    beside = (
        f'mkdir "$d/{unit}.d" && cp -- "$(systemctl show -p FragmentPath --value {unit})" "$d/{unit}" || exit\n'
        if drop_in
        else ""
    )
    return (
        "d=$(mktemp -d) && trap 'rm -rf \"$d\"' EXIT || exit\n"
        f'{beside}cp -- {{path}} "$d/{own}" || exit\n'
        f'said=$(systemd-analyze --man=no verify "$d/{unit.replace("@.", "@check.")}" 2>&1); code=$?\n'
        'printf "%s\\n" "$said"\n'
        f'case $said in *"$d/{own}:"*) exit 1 ;; esac\n'
        'exit "$code"'
    )


def sha256(data: bytes) -> str:
    """Hex digest by which files and configurations are compared."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Directory:
    """A folder that exists with this owner and mode. `mode` is octal text such as `0755`."""

    path: str
    mode: str = "0755"
    owner: str = "root"
    group: str = "root"


@dataclass(frozen=True)
class File:
    """A file with exactly this content.

    `secret` keeps its content out of every diff. `check` is a shell command in which `{path}` stands for the candidate;
    a candidate that it rejects never replaces the file that runs.
    """

    path: str
    content: bytes = field(repr=False)
    mode: str = "0644"
    owner: str = "root"
    group: str = "root"
    secret: bool = False
    check: str = ""

    @property
    def sha256(self) -> str:
        """Digest of the content."""
        return sha256(self.content)


@dataclass(frozen=True)
class Absent:
    """A file of ours that must no longer be there."""

    path: str


@dataclass(frozen=True)
class Package:
    """A distribution package; `version` pins it, `hold` keeps upgrades away from it.

    `never_beside` names packages that installing it could push off the host: while one is there, it is not installed.
    """

    name: str
    version: str = ""
    hold: bool = False
    never_beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unit:
    """A systemd unit.

    `config` lists files that the running unit must have started after: decided from the host's own times, so that
    a run that died between write and restart is finished by the next one. `on_change` is `restart`, `reload` or `none`.
    """

    name: str
    enabled: bool = True
    active: bool = True
    config: tuple[str, ...] = ()
    on_change: str = "none"
    masked: bool = False


@dataclass(frozen=True)
class Command:
    """A step that brings a fact to its wanted value: run `script` when `fact` on the host differs from `wanted`."""

    subject: str
    fact: str
    wanted: str
    script: str = field(repr=False)
    action: str = "set"
    reason: str = ""


@dataclass(frozen=True)
class Server:
    """One fleet host in a backend of the ingress. `address` has its port, `slots` are its calls at once.

    `options` is what else stands in its line. `drained`: it takes no new call by an operator's word; None: not known.
    """

    backend: str
    name: str
    address: str
    slots: int
    options: str
    drained: bool | None = None

    @property
    def id(self) -> int:
        """HAProxy's number for it, made from what cannot be read back from a running process: its name and options."""
        return int(sha256(f"{self.name} {self.options}".encode())[:8], 16) % (2**31 - 1) + 1

    @property
    def subject(self) -> str:
        """As HAProxy's commands name it."""
        return f"{self.backend}/{self.name}"


@dataclass(frozen=True)
class Served:
    """A certificate that the running proxy serves or trusts. `kind` is `cert` or `ca-file`, as HAProxy's commands say.

    `fingerprint`: SHA-1 as upper hex digits, of the leaf; of an authority's file those of all, joined by a space.
    """

    path: str
    kind: str
    fingerprint: str


@dataclass(frozen=True)
class Runtime:
    """What the running ingress must have beside its configuration: changed in the process that runs, without a reload.

    Compared only while the process runs configuration `config` and agrees with `file`: a start or a reload brings all
    of it. `before`: what an earlier concern of the same run has seen to, compared with instead of the host.
    """

    socket: str
    config: str
    file: str
    backends: tuple[str, ...]
    servers: tuple[Server, ...]
    certificates: tuple[Served, ...] = ()
    before: tuple[Server, ...] | None = None
    script: str = field(default="", repr=False)


@dataclass(frozen=True)
class Requirement:
    """What a host must be and callfleet does not make it: where `fact` is none of `accepted`, nothing is done."""

    subject: str
    fact: str
    accepted: tuple[str, ...]
    hint: str = ""


@dataclass(frozen=True)
class Images:
    """Images that must be on the host, as pullable references."""

    references: tuple[str, ...]


@dataclass(frozen=True)
class Stack:
    """A Compose project whose services carry the given configuration hashes.

    `config` maps each service to the hash on its `callfleet.config` label; `proxy_config` is the hash that the running
    proxy must report, `proxy_file` the file that it must have been loaded after; `slots` counts one-call workers.
    """

    name: str
    config: Mapping[str, str]
    kinds: Mapping[str, str]
    slots: int = 0
    proxy_config: str = ""
    proxy_file: str = ""


Item = Directory | File | Absent | Package | Unit | Command | Runtime | Requirement | Images | Stack


@dataclass(frozen=True)
class Concern:
    """One noun of a host, carried out by one operation."""

    name: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class ExpectedHost:
    """Everything callfleet keeps true on one host."""

    name: str
    concerns: tuple[Concern, ...]

    def concern(self, name: str) -> Concern | None:
        """The named concern, or None where this host has no such duty."""
        return next((c for c in self.concerns if c.name == name), None)

    def items(self) -> tuple[Item, ...]:
        """All items in the order in which they are carried out."""
        return tuple(item for concern in self.concerns for item in concern.items)


def config_hash(*parts: object) -> str:
    """Stable digest of JSON-like parts: what a container or a proxy was made from."""
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode())
