"""The plan: what must change on a host, and why, from what it must be and what it is. Pure.

Every change carries the item it came from, so that what is listed is what is carried out, and nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum

from callfleet.actual import Actual, Container, Engine, FileState, Proxy, ProxyServer, Slot, Unknown
from callfleet.expected import (
    AGREED,
    MADE,
    Absent,
    Command,
    Concern,
    Directory,
    ExpectedHost,
    File,
    Images,
    Item,
    Package,
    Requirement,
    Runtime,
    Server,
    Stack,
    Unit,
)


class Word(StrEnum):
    """What happens to a subject."""

    CREATE = "create"
    UPDATE = "update"
    REMOVE = "remove"
    INSTALL = "install"
    HOLD = "hold"
    ENABLE = "enable"
    START = "start"
    RESTART = "restart"
    RELOAD = "reload"
    PULL = "pull"
    RECREATE = "recreate"
    PUBLISH = "publish"
    SET = "set"
    LOAD = "load"
    FETCH = "fetch"
    REGISTER = "register"
    DRAIN = "drain"
    BLOCKED = "blocked"


@dataclass(frozen=True)
class Change:
    """One difference. `calls` says what it means for a live call, empty where it touches none."""

    kind: str
    subject: str
    word: Word
    reason: str
    item: Item = field(repr=False)
    calls: str = ""

    def __str__(self) -> str:
        text = f"{self.word} {self.kind} {self.subject}: {self.reason}"
        return f"{text} ({self.calls})" if self.calls else text


@dataclass(frozen=True)
class ConcernPlan:
    """The changes of one concern, in the order in which they are carried out."""

    name: str
    changes: tuple[Change, ...]

    @property
    def blocked(self) -> tuple[Change, ...]:
        """What cannot be decided because the host did not tell: nothing of this concern is carried out."""
        return tuple(change for change in self.changes if change.word is Word.BLOCKED)


@dataclass(frozen=True)
class HostPlan:
    """All concerns of one host."""

    host: str
    concerns: tuple[ConcernPlan, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every change of the host."""
        return tuple(change for concern in self.concerns for change in concern.changes)

    def concern(self, name: str) -> ConcernPlan:
        """The named concern; an empty one where this host has no such duty."""
        return next((c for c in self.concerns if c.name == name), ConcernPlan(name, ()))


def plan(expected: ExpectedHost, actual: Actual) -> HostPlan:
    """Compare one host with one snapshot of it.

    A unit that must be started after a file is restarted when that file is about to change anywhere on the host, so a
    chained change is planned as a whole.
    """
    items = expected.items()
    touched = frozenset(item.path for item in items if isinstance(item, File) and _file(item, actual))
    return HostPlan(expected.name, tuple(_concern(concern, actual, touched) for concern in expected.concerns))


def _concern(concern: Concern, actual: Actual, touched: frozenset[str]) -> ConcernPlan:
    own = frozenset(item.path for item in concern.items if isinstance(item, File) and _file(item, actual))
    changes = tuple(change for item in concern.items for change in _compare(item, actual, touched, own))
    return ConcernPlan(concern.name, changes)


def _compare(item: Item, actual: Actual, touched: frozenset[str], own: frozenset[str]) -> list[Change]:
    """`touched`: files of the host that are about to change; `own`: those that the item's own concern changes."""
    match item:
        case Directory():
            return _directory(item, actual)
        case File():
            return _file(item, actual)
        case Absent():
            return _absent(item, actual)
        case Package():
            return _package(item, actual)
        case Unit():
            return _unit(item, actual, touched)
        case Command():
            return _command(item, actual)
        case Runtime():
            return _runtime(item, actual, own)
        case Requirement():
            return _requirement(item, actual)
        case Images():
            return _images(item, actual)
        case Stack():
            return _stack(item, actual, own)


def _blocked(kind: str, subject: str, unknown: Unknown, item: Item) -> list[Change]:
    return [Change(kind, subject, Word.BLOCKED, f"could not be read: {unknown.reason}", item)]


def _directory(item: Directory, actual: Actual) -> list[Change]:
    state = actual.file(item.path)
    if isinstance(state, Unknown):
        return _blocked("directory", item.path, state, item)
    if state is None:
        return [Change("directory", item.path, Word.CREATE, "missing", item)]
    if state.kind != "directory":
        return [Change("directory", item.path, Word.BLOCKED, f"is a {state.kind}; move it away first", item)]
    differs = _ownership(item, state)
    return [Change("directory", item.path, Word.UPDATE, differs, item)] if differs else []


def _file(item: File, actual: Actual) -> list[Change]:
    state = actual.file(item.path)
    if isinstance(state, Unknown):
        return _blocked("file", item.path, state, item)
    if state is None:
        return [Change("file", item.path, Word.CREATE, "missing", item)]
    if state.kind == "directory":
        return [Change("file", item.path, Word.BLOCKED, "is a directory; move it away first", item)]
    if isinstance(state.sha256, Unknown):
        return _blocked("file", item.path, state.sha256, item)
    reasons = []
    if state.kind != "file":
        reasons.append(f"is a {state.kind}")
    elif state.sha256 != item.sha256:
        reasons.append("content differs")
    if differs := _ownership(item, state):
        reasons.append(differs)
    return [Change("file", item.path, Word.UPDATE, ", ".join(reasons), item)] if reasons else []


def _ownership(item: File | Directory, state: FileState) -> str:
    reasons = []
    if state.kind != "link" and state.mode != int(item.mode, 8):
        reasons.append(f"mode {state.mode:04o} instead of {item.mode}")
    if not _owned(item.owner, state.owner, state.uid) or not _owned(item.group, state.group, state.gid):
        reasons.append(f"owner {state.owner}:{state.group} instead of {item.owner}:{item.group}")
    return ", ".join(reasons)


def _owned(wanted: str, name: str, number: int) -> bool:
    """A container's user has a number, and on the host perhaps another name or none."""
    return number == int(wanted) if wanted.isdigit() else name == wanted


def _absent(item: Absent, actual: Actual) -> list[Change]:
    state = actual.file(item.path)
    if isinstance(state, Unknown):
        return _blocked("file", item.path, state, item)
    return [] if state is None else [Change("file", item.path, Word.REMOVE, "no longer declared", item)]


def _package(item: Package, actual: Actual) -> list[Change]:
    state = actual.package(item.name)
    if isinstance(state, Unknown):
        return _blocked("package", item.name, state, item)
    if state is None or state.status != "installed":
        wanted = f"{item.name}={item.version}" if item.version else item.name
        found = "not installed" if state is None else state.status
        if (other := _in_the_way(item, actual)) is not None:
            return other
        return [Change("package", wanted, Word.INSTALL, found, item)]
    if item.version and state.version != item.version:
        # Never an upgrade on the quiet: it stops containers.
        found = f"{state.version} is installed, {item.version} is declared"
        reason = f"{found}: what carries calls is upgraded through drain, by hand"
        return [Change("package", item.name, Word.BLOCKED, reason, item)]
    if item.hold and not state.held:
        return [Change("package", item.name, Word.HOLD, "an upgrade would stop what it runs", item)]
    return []


def _in_the_way(item: Package, actual: Actual) -> list[Change] | None:
    """What keeps a package from being installed: another one that apt would remove for it, containers and all."""
    for name in item.never_beside:
        other = actual.package(name)
        if isinstance(other, Unknown):
            return _blocked("package", item.name, other, item)
        if other is not None and other.status == "installed":
            reason = (
                f"{name} is installed, and one engine is never swapped for another: its containers would stop. "
                f"Move them and remove {name} yourself, or choose the engine under `docker:` in the site file"
            )
            return [Change("package", item.name, Word.BLOCKED, reason, item)]
    return None


def _unit(item: Unit, actual: Actual, touched: frozenset[str]) -> list[Change]:
    state = actual.unit(item.name)
    if isinstance(state, Unknown):
        return _blocked("unit", item.name, state, item)
    if state is None:
        # Its file or its package comes earlier in the same concern or run.
        words = [Word.ENABLE] * item.enabled + [Word.START] * item.active
        return [Change("unit", item.name, word, "new", item) for word in words]
    changes = []
    if state.needs_reload:
        changes.append(Change("unit", item.name, Word.LOAD, "its files changed after systemd read them", item))
    if item.enabled and state.enabled not in ("enabled", "static", "alias", "generated", "indirect"):
        changes.append(Change("unit", item.name, Word.ENABLE, f"is {state.enabled}", item))
    if item.active and state.active not in ("active", "reloading"):
        changes.append(Change("unit", item.name, Word.START, f"is {state.active}", item))
    elif item.on_change != "none":
        word = Word(item.on_change)
        if changed := _changed_after(item, state.since, actual, touched):
            changes.append(Change("unit", item.name, word, f"{changed} changed after it started", item))
    return changes


def _changed_after(item: Unit, since: int | None, actual: Actual, touched: frozenset[str]) -> str:
    for path in item.config:
        if path in touched:
            return path
        state = actual.file(path)
        # Unit times are whole seconds: a file of the very second of the start was there before it.
        if since is not None and isinstance(state, FileState) and int(state.mtime) > since:
            return path
    return ""


def _command(item: Command, actual: Actual) -> list[Change]:
    found = fact(item.fact, actual)
    if isinstance(found, Unknown):
        return _blocked("setting", item.subject, found, item)
    if found == item.wanted:
        return []
    return [Change("setting", item.subject, Word(item.action), item.reason, item)]


def _requirement(item: Requirement, actual: Actual) -> list[Change]:
    found = fact(item.fact, actual)
    if isinstance(found, Unknown):
        return _blocked(item.subject, item.fact, found, item)
    if found in item.accepted:
        return []
    reason = f"found {found}, expected {' or '.join(item.accepted)}. {item.hint}".strip()
    return [Change(item.subject, found, Word.BLOCKED, reason, item)]


def fact(name: str, actual: Actual) -> str | Unknown:
    """The value of one named fact as text; empty where the thing is not there yet.

    `proxy:SOCKET:FILE` is the hash of the configuration that a proxy runs, while it agrees with FILE.
    """
    kind, _, argument = name.partition(":")
    match kind:
        case "docker.live_restore":
            engine = actual.engine
            if isinstance(engine, Unknown):
                return engine
            # A daemon that is still to be installed starts with our daemon.json.
            return "true" if not isinstance(engine, Engine) or engine.live_restore else "false"
        case "os":
            return actual.os if isinstance(actual.os, Unknown) else f"{actual.os.id} {actual.os.version_id}"
        case "file":
            state = actual.file(argument)
            return state if isinstance(state, Unknown) else ("" if state is None else "present")
        case "proxy":
            socket, _, file = argument.partition(":")
            proxy = actual.proxy(socket)
            if proxy is None or isinstance(proxy, Unknown):
                return "" if proxy is None else proxy
            return (proxy.config or "") if not file or _agrees(proxy, file, actual) else "loaded from another file"
        case "core_fleet":
            fleet = actual.core_fleet
            return fleet if isinstance(fleet, Unknown) else json.dumps(list(fleet or ()))
        case "firewall":
            return _firewall(actual)
    raise ValueError(f"no fact {name!r}")


def _firewall(actual: Actual) -> str | Unknown:
    """The digest of the rules file that the kernel's table came from, while the table is still what we loaded."""
    if isinstance(actual.nft, Unknown):
        return actual.nft
    record = actual.content("/etc/callfleet/firewall.loaded")
    if isinstance(record, Unknown):
        return record
    if actual.nft is None or record is None:
        return ""
    rules, _, loaded = record.decode().strip().partition(" ")
    return rules if loaded == actual.nft else "changed by hand"


def _images(item: Images, actual: Actual) -> list[Change]:
    if isinstance(actual.engine, Unknown):
        return _blocked("image", "all", actual.engine, item)
    if actual.engine is None:
        present: set[str] = set()
    elif isinstance(actual.images, Unknown):
        return _blocked("image", "all", actual.images, item)
    else:
        present = {f"{i.repository}@{i.digest}" for i in actual.images if i.digest}
        present |= {f"{i.repository}:{i.tag}" for i in actual.images if i.tag}
    return [
        Change("image", reference, Word.PULL, "not on the host", item)
        for reference in item.references
        if reference not in present
    ]


ADMIN_DRAIN = 8
"""The bit of `srv_admin_state` (management guide, 9.3) that `set server ... state drain` sets."""


def _agrees(proxy: Proxy, file: str, actual: Actual) -> bool:
    """Whether a proxy runs what its file says: loaded from it, or brought to it while it ran, which is written down.

    The note names process and file, so a process that was reloaded or a file that was edited since has none.
    """
    state = actual.file(file)
    if not isinstance(state, FileState):
        return False
    # Whole seconds: a load in the second of the writing counts as after it.
    if proxy.started is None or int(state.mtime) <= proxy.started:
        return True
    note = actual.content(AGREED)
    if note is None or isinstance(note, Unknown):
        return False
    try:
        said = json.loads(note)
    except ValueError:
        return False
    return bool(said == {"pid": proxy.pid, "started": proxy.started, "sha256": state.sha256})


def _runtime(item: Runtime, actual: Actual, own: frozenset[str]) -> list[Change]:
    proxy = actual.proxy(item.socket)
    if isinstance(proxy, Unknown):
        return _blocked("proxy", item.socket, proxy, item)
    runs = proxy is not None and proxy.config == item.config and _agrees(proxy, item.file, actual)
    if item.before is None and (proxy is None or not runs):
        return []  # it is started or reloaded, and reads all of it from its file
    changes = []
    if item.before is None and proxy is not None:
        for served in item.certificates:
            if served.path in own or proxy.certificates.get(served.path) != served.fingerprint:
                changes.append(Change("certificate", served.path, Word.LOAD, "the proxy serves another", item, GO_ON))
        found = {(one.backend, one.name): one for one in proxy.servers if one.backend in item.backends}
    else:
        live = () if proxy is None else proxy.servers
        sessions = {(one.backend, one.name): one.sessions for one in live}
        found = {
            (one.backend, one.name): _as_declared(one, sessions.get((one.backend, one.name), 0))
            for one in item.before or ()
        }
    wanted = {(one.backend, one.name): one for one in item.servers}
    for key, there in found.items():
        if key not in wanted or there.id != wanted[key].id:
            reason = "no longer registered" if key not in wanted else "its options differ"
            changes.append(_leaves(item, there, reason))
    for key, server in wanted.items():
        one = found.get(key)
        if one is None:
            changes.append(Change("server", server.subject, Word.REGISTER, f"{server.slots} slots", item, GO_ON))
        elif one.id == server.id and (differs := _server_differs(server, one)):
            changes.append(Change("server", server.subject, Word.SET, differs, item, GO_ON))
    if not changes and runs and item.file in own and item.before is None:
        changes.append(Change("server", "all", Word.SET, "are so already; their file follows", item))
    return changes


GO_ON = "calls go on"


def _as_declared(server: Server, sessions: int) -> ProxyServer:
    """A server as an earlier concern of the run leaves it."""
    admin = ADMIN_DRAIN if server.drained else 0
    return ProxyServer(
        server.backend, server.name, server.address, "UP", 1, sessions, admin, server.id, server.slots, checked=True
    )


def _leaves(item: Runtime, server: ProxyServer, reason: str) -> Change:
    subject = f"{server.backend}/{server.name}"
    if not server.sessions:
        return Change("server", subject, Word.REMOVE, reason, item)
    calls = f"{server.sessions} on it: left serving, no new ones, removed by a later run"
    return Change("server", subject, Word.DRAIN, reason, item, calls)


def _server_differs(wanted: Server, found: ProxyServer) -> str:
    reasons = []
    if found.address != wanted.address:
        reasons.append(f"address {found.address} instead of {wanted.address}")
    if found.limit != wanted.slots:
        reasons.append(f"maxconn {found.limit or 'unlimited'} instead of {wanted.slots}")
    if not found.checked:
        reasons.append("its health check does not run")
    admin = ADMIN_DRAIN if wanted.drained else 0
    if found.admin != admin and not (wanted.drained is None and found.admin == ADMIN_DRAIN):
        reasons.append(f"admin state {found.admin} instead of {admin} ({'drain' if admin else 'ready'})")
    return ", ".join(reasons)


def _loaded_before(proxy: Proxy, file: str, actual: Actual, touched: frozenset[str]) -> bool:
    """Whether a proxy's file was written after it was loaded: what it runs need not be what its hash says."""
    if file in touched:
        return True
    return bool(file) and isinstance(actual.file(file), FileState) and not _agrees(proxy, file, actual)


def _stack(item: Stack, actual: Actual, own: frozenset[str]) -> list[Change]:
    if isinstance(actual.engine, Unknown):
        return _blocked("containers", item.name, actual.engine, item)
    containers: tuple[Container, ...] | Unknown = () if actual.engine is None else actual.stack_containers(item.name)
    if isinstance(containers, Unknown):
        return _blocked("containers", item.name, containers, item)
    slots = actual.stack_slots(item.name)
    made = _made(item.name, actual)
    if isinstance(made, Unknown):
        return _blocked("containers", item.name, made, item)
    # A proxy that was turned over has a former container, which ends with its last call: the wanted one counts.
    by_service = {
        container.service: container
        for container in sorted(containers, key=lambda c: (_is_wanted(item, c), c.state == "running"))
    }
    changes = []
    for service, digest in item.config.items():
        container = by_service.get(service)
        by_hand = container is not None and made.get(service, {}).get(digest, container.made) != container.made
        changes += _service(item, service, digest, container, slots, by_hand=by_hand)
    for service in sorted(str(name) for name in by_service if name not in item.config):
        changes.append(
            Change(
                "container", f"{item.name}/{service}", Word.REMOVE, "no longer declared", item, _calls(service, slots)
            )
        )
    if item.proxy_config and not any(change.subject == f"{item.name}/proxy" for change in changes):
        proxy = actual.proxy(f"/run/{item.name}/proxy/admin.sock")
        if isinstance(proxy, Unknown):
            return [*changes, *_blocked("proxy", item.name, proxy, item)]
        known = proxy is not None and proxy.config == item.proxy_config
        if proxy is None or not known or _loaded_before(proxy, item.proxy_file, actual, own):
            changes.append(
                Change("proxy", f"{item.name}/proxy", Word.RELOAD, "runs another configuration", item, "calls go on")
            )
    return changes


def _made(stack: str, actual: Actual) -> dict[str, dict[str, object]] | Unknown:
    """What the containers of a stack were made from, as noted on the host: service, label, note. Garbage is no note."""
    note = actual.content(MADE.format(stack))
    if isinstance(note, Unknown):
        return note
    try:
        said = json.loads(note or b"{}")
    except ValueError:
        return {}
    noted = said.items() if isinstance(said, dict) else ()
    return {service: made for service, made in noted if isinstance(made, dict)}


def _is_wanted(item: Stack, container: Container) -> bool:
    return container.labels.get("callfleet.config") == item.config.get(str(container.service))


def _service(
    item: Stack,
    service: str,
    digest: str,
    container: Container | None,
    slots: tuple[Slot, ...] | Unknown | None,
    *,
    by_hand: bool,
) -> list[Change]:
    subject = f"{item.name}/{service}"
    if container is None:
        return [Change("container", subject, Word.CREATE, "missing", item)]
    if by_hand or container.labels.get("callfleet.config") != digest:
        words = {"proxy": "calls go on", "guarded": "waits until it says that no call is in set-up"}
        kind = item.kinds.get(service, "")
        touched = _calls(service, slots) if kind == "slot" else words.get(kind, "")
        why = "changed by hand" if by_hand else "made from another definition"
        return [Change("container", subject, Word.RECREATE, why, item, touched)]
    if container.state != "running":
        return [Change("container", subject, Word.START, f"is {container.state}", item)]
    slot = _slot(service, slots)
    if slot is not None and slot.word == "unpublished":
        return [Change("slot", subject, Word.PUBLISH, "has not passed its canary call", item)]
    return []


def _slot(service: str, slots: tuple[Slot, ...] | Unknown | None) -> Slot | None:
    number = service.rpartition("-")[2]
    if slots is None or isinstance(slots, Unknown) or not service.startswith("worker-") or not number.isdigit():
        return None
    return next((slot for slot in slots if slot.number == int(number)), None)


def _calls(service: str, slots: tuple[Slot, ...] | Unknown | None) -> str:
    """What recreating a slot means for the call it may carry."""
    slot = _slot(service, slots)
    if slot is None:
        return "state unknown: waits until its worker says 0 calls"
    if slot.busy:
        return f"{slot.word}: left serving, finished by a later run"
    return f"{slot.word}: now"
