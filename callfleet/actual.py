"""What one host is: the typed answer of the probe. Pure data; no SSH, no clock, no pyinfra.

Three answers are told apart everywhere, because they lead to different plans:

* a value: the probe read it;
* ``None``: the probe read that it is not there (absent);
* ``Unknown``: the probe could not tell, and why. Unknown is never treated as absent, idle or unchanged.

Mappings are keyed by what was asked. Use the lookup methods of ``Actual`` (``file``, ``unit``, ...): a key that was
never asked, or a part that failed as a whole, answers ``Unknown`` there instead of ``KeyError``.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")

EPHEMERAL_PORTS = 32768  # where the kernel's range for outgoing connections starts: listeners above come and go


@dataclass(frozen=True, slots=True)
class Unknown:
    """A part that could not be read. ``reason`` is for people; two unknowns count as the same fact whatever it says."""

    reason: str

    def __bool__(self) -> bool:
        """An unknown in a condition is a programming error: it would silently mean "not there" or "no"."""
        raise TypeError(f"unknown has no truth value ({self.reason}); test isinstance(value, Unknown) first")


@dataclass(frozen=True, slots=True)
class Os:
    """The fields of os-release that decide support: id ``debian``, version_id ``13``, codename ``trixie``."""

    id: str
    version_id: str
    codename: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. ``available`` is the kernel's estimate of what new processes can get without swapping."""

    total: int
    available: int


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes and inodes of the filesystem that holds a path; ``mount`` is where it is mounted.

    ``inodes_free`` is ``None`` on filesystems that have no fixed number of them.
    """

    mount: str
    size: int
    free: int
    inodes_free: int | None


@dataclass(frozen=True, slots=True)
class Clock:
    """Host time in unix seconds (UTC), and whether the kernel says that something keeps it right."""

    unix: int
    synchronized: bool | Unknown


@dataclass(frozen=True, slots=True)
class FileState:
    """One path itself, links not followed.

    ``kind`` is file, directory, link, socket, fifo, block, char or other; ``mode`` is permission bits (0o640);
    ``mtime`` unix seconds; ``target`` the link's text. ``owner`` and ``group`` are the host's names, or the numbers
    again where it has none; compare ``uid`` and ``gid`` where a number is meant. ``sha256`` (hex) is ``None`` for what
    has no content to hash, unknown when unreadable.
    """

    kind: str
    mode: int
    owner: str
    group: str
    uid: int
    gid: int
    size: int
    mtime: float
    target: str | None = None
    sha256: str | Unknown | None = None


@dataclass(frozen=True, slots=True)
class PackageState:
    """``status`` is dpkg's word (``installed``, ``half-configured``, ...); ``held`` means apt must not change it."""

    version: str
    status: str
    held: bool


@dataclass(frozen=True, slots=True)
class UnitState:
    """systemd's own words. A unit that does not exist is absent (``None``), never a ``UnitState``.

    ``main_pid`` 0 and ``since`` ``None`` mean not running; ``since`` is unix seconds of the last start.
    ``id`` is the unit's real name when it was asked for by an alias.
    """

    id: str
    load: str
    active: str
    sub: str
    enabled: str
    main_pid: int
    since: int | None
    invocation: str
    restarts: int
    fragment: str
    drop_ins: tuple[str, ...]
    needs_reload: bool

    @property
    def masked(self) -> bool:
        return self.load == "masked" or self.enabled.startswith("masked")


@dataclass(frozen=True, slots=True)
class Engine:
    """The Docker daemon as it runs now, which daemon.json may not say. ``compose`` ``None``: no Compose v2."""

    version: str
    compose: str | None
    live_restore: bool
    storage_driver: str
    cgroup_driver: str
    log_driver: str
    root: str


@dataclass(frozen=True, slots=True)
class Container:
    """One container. ``state`` and ``health`` are Docker's words (``None``: no check); ``started`` is RFC 3339.

    ``limits``: memory in bytes, billionths of a CPU, processes; 0 is none.
    """

    id: str
    name: str
    labels: Mapping[str, str]
    image_id: str
    image: str
    state: str
    health: str | None
    exit_code: int
    restart_count: int
    started: str
    pid: int
    restart_policy: str
    network: str
    stop_signal: str
    limits: tuple[int, int, int] = (0, 0, 0)

    @property
    def made(self) -> list[str | int]:
        """What it was really made from, as the host's slot program notes it: Compose's own hash, and the limits."""
        return [self.labels.get("com.docker.compose.config-hash", ""), *self.limits]

    @property
    def project(self) -> str | None:
        return self.labels.get("com.docker.compose.project")

    @property
    def service(self) -> str | None:
        return self.labels.get("callfleet.service") or self.labels.get("com.docker.compose.service")

    @property
    def stack(self) -> str | None:
        """The stack of ours that it belongs to; ``None`` for a container that is not ours to touch."""
        return self.labels.get("callfleet.stack")


@dataclass(frozen=True, slots=True)
class Image:
    """One name of one local image; ``tag`` or ``digest`` is ``None`` when that name has none."""

    id: str
    repository: str
    tag: str | None
    digest: str | None


class SlotWord(StrEnum):
    """What a slot is doing. Only drained, dead and unpublished slots may be stopped."""

    IDLE = "idle"
    ON_A_CALL = "on a call"
    DRAINING = "draining"
    DRAINED = "drained"
    DEAD = "dead"
    UNPUBLISHED = "unpublished"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Slot:
    """One call slot as the host's slot program sees it. ``calls`` ``None``: the worker did not say.

    ``config`` is the ``callfleet.config`` label that its container was made from.
    """

    number: int
    word: SlotWord
    calls: int | None
    container: str | None
    config: str | None
    published: bool | None
    why: str | None = None

    @property
    def busy(self) -> bool:
        return self.word not in (SlotWord.IDLE, SlotWord.DRAINED, SlotWord.DEAD, SlotWord.UNPUBLISHED)


@dataclass(frozen=True, slots=True)
class ProxyServer:
    """One server as HAProxy runs it. ``admin`` holds its admin-state bits (0: nothing forced by an operator).

    ``limit``: calls at once, ``None`` without a limit. ``checked``: its health check is running.
    """

    backend: str
    name: str
    address: str
    status: str
    weight: int | None
    sessions: int
    admin: int | None
    id: int = 0
    limit: int | None = None
    checked: bool | None = None


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running HAProxy seen through its admin socket; ``config`` is the hash of the file that it was started with.

    ``started``: unix seconds of the start or reload by which it runs; ``None`` where it does not say (before 2.9).
    ``certificates``: by path, SHA-1 fingerprints of those that were asked about and are loaded.
    """

    version: str
    pid: int
    started: int | None
    sessions: int
    stopping: bool
    config: str | None
    servers: tuple[ProxyServer, ...]
    certificates: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProxyProcess:
    """One process under a master: ``role`` master or worker; ``old`` workers only finish what they still carry.

    ``connections``: what its frontends carry, ``None`` where it did not say. ``ages``: seconds of the oldest session by
    backend and server, where sessions were asked for.
    """

    pid: int
    role: str
    reloads: int
    old: bool
    connections: int | None = None
    ages: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket. ``processes`` are (name, pid); empty when the probe did not run as root."""

    address: str
    port: int
    processes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """Where to read the API's fleet list. ``curl_config`` is a root-only file on the host that carries the token."""

    curl_config: str
    url: str


@dataclass(frozen=True, slots=True, repr=False)
class ProbeRequest:
    """What to ask one host. Hashable, so that it can be a fact's argument.

    Paths are absolute and normalised; names are literal, never patterns. ``listed``: directories of ours whose whole
    content is listed (metadata, no hashes). ``contents``: small files that are read whole; never one with a secret,
    as answers are shown in debug output. ``certificates``: files of which only the first certificate is read, never a
    key. ``haproxy_certificates``: `cert PATH` or `ca-file PATH`, asked of every proxy. ``haproxy_sessions``: those of
    ``haproxy_master`` whose sessions are read. ``nft_table``: family and name. Raises ValueError, naming the value, for
    anything else.
    """

    files: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()
    haproxy_admin: tuple[str, ...] = ()
    haproxy_master: tuple[str, ...] = ()
    haproxy_certificates: tuple[str, ...] = ()
    haproxy_sessions: tuple[str, ...] = ()
    nft_table: str = "inet callfleet"
    api: ApiRequest | None = None

    def __post_init__(self) -> None:
        paths = (*self.files, *self.contents, *self.certificates, *self.listed)
        for path in (*paths, *self.haproxy_admin, *self.haproxy_master, *self.haproxy_sessions):
            _require_path(path)
        for noun, pattern, values in (
            ("unit", r"[A-Za-z0-9][A-Za-z0-9:_.@\\-]*\.[a-z]+", self.units),
            ("package", r"[a-z0-9][a-z0-9+.-]*", self.packages),
            ("stack", r"[A-Za-z0-9][A-Za-z0-9_-]*", self.stacks),
            ("certificate", r"(cert|ca-file) /[A-Za-z0-9_./-]+", self.haproxy_certificates),
            ("nft table", r"(inet|ip|ip6) [A-Za-z][A-Za-z0-9_-]*", (self.nft_table,)),
            ("API address", r"https?://[^\s]+", (self.api.url,) if self.api else ()),
        ):
            for value in values:
                if not re.fullmatch(pattern, value):
                    raise ValueError(f"{noun} {value!r} cannot be asked for: expected {pattern}")
        if self.api:
            _require_path(self.api.curl_config)

    def __repr__(self) -> str:
        """Short on purpose: this stands in every log line about the fact."""
        return f"ProbeRequest({len(self.files)} files, {len(self.units)} units, {len(self.packages)} packages)"


@dataclass(frozen=True, slots=True)
class Actual:
    """Everything the probe read from one host in one round trip."""

    request: ProbeRequest = field(default_factory=ProbeRequest)
    os: Os | Unknown = Unknown("not probed")
    arch: str | Unknown = Unknown("not probed")
    kernel: str | Unknown = Unknown("not probed")
    hostname: str | Unknown = Unknown("not probed")
    boot_id: str | Unknown = Unknown("not probed")
    uid: int | Unknown = Unknown("not probed")
    ssh_port: int | Unknown = Unknown("not probed")
    cpus: int | Unknown = Unknown("not probed")
    memory: Memory | Unknown = Unknown("not probed")
    disks: Mapping[str, Disk] | Unknown = Unknown("not probed")
    clock: Clock | Unknown = Unknown("not probed")
    files: Mapping[str, FileState | Unknown | None] | Unknown = Unknown("not probed")
    contents: Mapping[str, bytes | Unknown | None] | Unknown = Unknown("not probed")
    certificates: Mapping[str, bytes | Unknown | None] | Unknown = Unknown("not probed")
    """The first certificate of each file as PEM; empty where it has none."""
    listings: Mapping[str, Mapping[str, FileState] | Unknown | None] | Unknown = Unknown("not probed")
    packages: Mapping[str, PackageState | None] | Unknown = Unknown("not probed")
    units: Mapping[str, UnitState | None] | Unknown = Unknown("not probed")
    engine: Engine | Unknown | None = Unknown("not probed")
    containers: tuple[Container, ...] | Unknown = Unknown("not probed")
    images: tuple[Image, ...] | Unknown = Unknown("not probed")
    slots: Mapping[str, tuple[Slot, ...] | Unknown | None] | Unknown = Unknown("not probed")
    proxies: Mapping[str, Proxy | Unknown | None] | Unknown = Unknown("not probed")
    proxy_processes: Mapping[str, tuple[ProxyProcess, ...] | Unknown | None] | Unknown = Unknown("not probed")
    listeners: tuple[Listener, ...] | Unknown = Unknown("not probed")
    nft: str | Unknown | None = Unknown("not probed")
    """SHA-256 (hex) of our table as ``nft -s list table`` prints it; ``None``: there is no such table."""
    nft_rules: str | Unknown | None = Unknown("not probed")
    site: Mapping[str, Any] | Unknown | None = Unknown("not probed")
    fence: int | Unknown | None = Unknown("not probed")
    canaries: Mapping[str, Mapping[str, Any] | Unknown | None] | Unknown = Unknown("not probed")
    drained: Mapping[str, Mapping[str, Mapping[str, Any]] | Unknown] | Unknown = Unknown("not probed")
    core_fleet: tuple[str, ...] | Unknown | None = Unknown("not probed")

    @classmethod
    def unread(cls, reason: str, request: ProbeRequest | None = None) -> Actual:
        """A host that did not answer: every part unknown for one reason."""
        parts: dict[str, Any] = {name: Unknown(reason) for name in cls.__dataclass_fields__ if name != "request"}
        return cls(request=request or ProbeRequest(), **parts)

    def file(self, path: str) -> FileState | Unknown | None:
        return _look_up(self.files, path, "file")

    def content(self, path: str) -> bytes | Unknown | None:
        """The whole content of a file that was asked for in ``contents``."""
        return _look_up(self.contents, path, "content of")

    def listing(self, directory: str) -> Mapping[str, FileState] | Unknown | None:
        """What lies under a directory of ours, by path relative to it; ``None`` when there is no such directory."""
        return _look_up(self.listings, directory, "directory")

    def package(self, name: str) -> PackageState | Unknown | None:
        return _look_up(self.packages, name, "package")

    def unit(self, name: str) -> UnitState | Unknown | None:
        return _look_up(self.units, name, "unit")

    def stack_slots(self, stack: str) -> tuple[Slot, ...] | Unknown | None:
        """The slots of a stack; ``None`` when the host has no slot program yet."""
        return _look_up(self.slots, stack, "stack")

    def proxy(self, admin_socket: str) -> Proxy | Unknown | None:
        return _look_up(self.proxies, admin_socket, "proxy socket")

    def processes(self, master_socket: str) -> tuple[ProxyProcess, ...] | Unknown | None:
        return _look_up(self.proxy_processes, master_socket, "proxy socket")

    def canary(self, stack: str) -> Mapping[str, Any] | Unknown | None:
        return _look_up(self.canaries, stack, "stack")

    def drains(self, stack: str) -> Mapping[str, Mapping[str, Any]] | Unknown:
        """The operator's declared drains by slot, with what was recorded about each; empty when none is declared."""
        return _look_up(self.drained, stack, "stack")

    def stack_containers(self, stack: str) -> tuple[Container, ...] | Unknown:
        """Our containers of one stack, by label; other people's containers never show up here."""
        if isinstance(self.containers, Unknown):
            return self.containers
        return tuple(container for container in self.containers if container.stack == stack)

    def projects(self) -> tuple[str, ...] | Unknown:
        """Names of the Compose projects that have a container here, running or not."""
        if isinstance(self.containers, Unknown):
            return self.containers
        return tuple(sorted({container.project for container in self.containers if container.project}))

    def unknowns(self) -> Mapping[str, str]:
        """Every unknown part as dotted name -> reason, for a plan that must say what it could not see."""
        found: dict[str, str] = {}
        for name in self.__dataclass_fields__:
            _collect_unknown(name, getattr(self, name), found)
        return found

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that a plan depends on; equal fingerprints mean that a shown plan still holds.

        Left out, because they change by themselves or by taking a lock: call counts and the words idle and "on a call",
        ages, uptimes, pids, container ids, start times, restart counts, health, sessions and server check results, free
        memory and disk, the clock, mtimes, kernel release and boot id, the fence number, listeners on ephemeral ports,
        containers without our label, and the wording of why something is unknown.
        """
        text = json.dumps(_decisive(self), sort_keys=True, separators=(",", ":"), default=_as_json)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _require_path(path: str) -> None:
    if not path.startswith("/") or path.startswith("//") or "\0" in path or posixpath.normpath(path) != path:
        raise ValueError(f"path {path!r} cannot be asked for: expected an absolute, normalised path")


def _look_up(part: Mapping[str, T] | Unknown, key: str, noun: str) -> T | Unknown:
    if isinstance(part, Unknown):
        return part
    return part[key] if key in part else Unknown(f"the probe was not asked about the {noun} {key}")


def _collect_unknown(name: str, value: object, found: dict[str, str]) -> None:
    if isinstance(value, Unknown):
        found[name] = value.reason
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _collect_unknown(f"{name}[{key}]", item, found)
    elif isinstance(value, FileState):
        _collect_unknown(f"{name}.sha256", value.sha256, found)
    elif isinstance(value, Clock):
        _collect_unknown(f"{name}.synchronized", value.synchronized, found)


_SERVING = (SlotWord.IDLE, SlotWord.ON_A_CALL, SlotWord.UNKNOWN)
_WITHDRAWN = (SlotWord.DRAINING, SlotWord.DRAINED)


def _decisive(actual: Actual) -> dict[str, object]:
    return {
        "os": actual.os,
        "arch": actual.arch,
        "hostname": actual.hostname,
        "uid": actual.uid,
        "ssh_port": actual.ssh_port,
        "cpus": actual.cpus,
        "memory": actual.memory if isinstance(actual.memory, Unknown) else actual.memory.total,
        "files": actual.files,
        "contents": actual.contents,
        "listings": actual.listings,
        "packages": actual.packages,
        "units": actual.units,
        "engine": actual.engine,
        "containers": _decisive_containers(actual.containers),
        "images": _decisive_images(actual.images),
        "slots": actual.slots,
        "proxies": actual.proxies,
        "listeners": _decisive_listeners(actual.listeners),
        "nft": actual.nft,
        "site": actual.site,
        "canaries": actual.canaries,
        "drained": actual.drained,
        "core_fleet": sorted(actual.core_fleet) if isinstance(actual.core_fleet, tuple) else actual.core_fleet,
    }


def _decisive_containers(containers: tuple[Container, ...] | Unknown) -> object:
    if isinstance(containers, Unknown):
        return containers
    # One that Docker will not start again is a former proxy: it ends by itself, with its last call.
    ours = (c for c in containers if c.stack is not None and c.restart_policy != "no")
    return sorted(ours, key=lambda c: (c.name, c.id))


def _decisive_images(images: tuple[Image, ...] | Unknown) -> object:
    if isinstance(images, Unknown):
        return images
    return sorted(images, key=lambda image: (image.repository, image.tag or "", image.digest or "", image.id))


def _decisive_listeners(listeners: tuple[Listener, ...] | Unknown) -> object:
    if isinstance(listeners, Unknown):
        return listeners
    return sorted(
        [one.address, one.port, sorted({name for name, _ in one.processes})]
        for one in listeners
        if one.port < EPHEMERAL_PORTS
    )


def _as_json(value: object) -> object:
    """The decisive part of one value, as something json can write; called by json.dumps for what it does not know."""
    match value:
        case Unknown():
            return {"unknown": True}
        case FileState():
            whose = [value.owner, value.group, value.uid, value.gid]
            return [value.kind, value.mode, *whose, value.target, value.sha256]
        case UnitState():
            words = [value.id, value.load, value.active, value.enabled, value.fragment]
            return [*words, list(value.drop_ins), value.needs_reload]
        case Container():
            made_of = [value.name, dict(value.labels), value.image_id, value.image, value.state]
            return [*made_of, value.restart_policy, value.network, value.stop_signal, *value.limits]
        case Image():
            return [value.repository, value.tag or "", value.digest or "", value.id]
        case Slot():
            return [value.number, _slot_class(value.word), value.config, value.published]
        case Proxy():
            return [value.version, value.config, value.stopping, list(value.servers), dict(value.certificates)]
        case ProxyServer():
            said = [value.backend, value.name, value.address, value.weight, value.admin]
            return [*said, value.id, value.limit, value.checked]
        case bytes():
            return hashlib.sha256(value).hexdigest()
        case Mapping():
            return dict(value)
        case Os() | PackageState() | Engine():
            return [getattr(value, name) for name in value.__dataclass_fields__]
    raise TypeError(f"no canonical form for {type(value).__name__}")


def _slot_class(word: SlotWord) -> str:
    if word in _SERVING:
        return "serving"
    return "withdrawn" if word in _WITHDRAWN else word.value
