"""What a fleet host says of its workers: units, environment, sockets, and nginx in front of them. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass

from callfleet.actual import Unknown
from callfleet.adopt import nginx
from callfleet.adopt.found import Found, Unit, Value

POST_ROUTES = ("/attach", "/livekit/dialout", "/livekit/widget")
DISPATCH = "/livekit/dispatch"
CALL_ROUTES = ("/ws/bot", "/exotel/bot")
HEALTH_ROUTES = ("/health", "/health/fleet")

# Values that every host must agree on, by the end of their names.
SHARED = ("CONFIG_URL", "RESULT_URL", "FLEET_URLS", "MONGODB_DB", "VITE_API_URL", "SECRET_HEADER")
_CORE_SECRET = re.compile(r"(.*_)?CORE_(SHARED_)?SECRET|[A-Z0-9]*CORE_SECRET")


@dataclass(frozen=True)
class Workers:
    """The call workers of one host, by what each side says of them.

    Sets hold workers' numbers; `running` and `enabled` are units. `declared` is the variable that says how many there
    are. None where a side does not exist, Unknown where it could not be read.
    """

    prefix: str
    directory: str
    running: frozenset[int] | Unknown | None
    enabled: frozenset[int] | Unknown | None
    listening: frozenset[int] | Unknown
    sockets: frozenset[int] | Unknown
    upstreams: tuple[nginx.Upstream, ...]
    units: tuple[Unit, ...]
    environment: Mapping[str, Value]
    declared: Value | None

    @property
    def count(self) -> int:
        """How many call slots the host has: what runs, else what listens, else what nginx sends calls to."""
        for side in (self.running, self.listening):
            if isinstance(side, frozenset) and side:
                return len(side)
        return max((len(each.numbers) for each in self.upstreams), default=0)


@dataclass(frozen=True)
class Front:
    """nginx of one host. `routes` are by the path of the workers' contract, where it leads to workers."""

    tree: nginx.Tree
    server: nginx.Node | None
    routes: Mapping[str, nginx.Route]
    names: tuple[str, ...]
    port: int | None
    tls: bool
    certificates: tuple[tuple[tuple[str, ...], str, str], ...] = ()


@dataclass(frozen=True)
class Machine:
    """One host as it was understood. `api` and `dialler` are units; `beside`: workers of other names, not taken."""

    found: Found
    workers: Workers | None
    front: Front | None
    api: Unit | None = None
    dialler: Unit | None = None
    other_units: tuple[Unit, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The host's name."""
        return self.found.name


@dataclass(frozen=True)
class Names:
    """The names by which the application's units are known: data of the brands."""

    api: frozenset[str]
    dialler: frozenset[str]
    prefixes: frozenset[str]


def understand(found: Found, known: Names) -> Machine:
    """One host."""
    tree = _tree(found)
    upstreams = nginx.socket_upstreams(tree) if tree else []
    units = found.units if isinstance(found.units, Mapping) else {}
    workers = _workers(found, upstreams, units, known)
    front = _front(tree, workers) if tree else None
    api = _unit(units, known.api, r"[a-z0-9]+-api")
    dialler = _unit(units, known.dialler, r"[a-z0-9]+-diall?er")
    mine = {each.name for each in (*(workers.units if workers else ()), api, dialler) if each}
    rest = tuple(unit for name, unit in sorted(units.items()) if name not in mine)
    others = {each.prefix for each in upstreams} | {name for unit in units.values() if (name := _worker_template(unit))}
    beside = sorted(others - {workers.prefix}) if workers else []
    return Machine(found, workers, front, api, dialler, rest, tuple(beside))


def _tree(found: Found) -> nginx.Tree | None:
    if found.nginx is None or isinstance(found.nginx, Unknown):
        return None
    return nginx.read(found.nginx.texts, found.nginx.main[0] if found.nginx.main else "/etc/nginx/nginx.conf")


def _unit(units: Mapping[str, Unit], names: frozenset[str], like: str) -> Unit | None:
    """A service by the name that a brand gives it, else by the form of its name."""
    stems = {name.removesuffix(".service"): unit for name, unit in units.items() if not unit.template}
    exact = [stems[name] for name in sorted(names) if name in stems]
    near = [unit for name, unit in sorted(stems.items()) if re.fullmatch(like, name)]
    choice = sorted(exact or near, key=lambda unit: not unit.active)
    return choice[0] if choice else None


_SOCKET = re.compile(r"(?P<directory>/.*)/(?P<prefix>[A-Za-z][A-Za-z0-9._-]*)_(?P<number>[0-9]{1,4})\.sock")


def _workers(found: Found, upstreams: list[nginx.Upstream], units: Mapping[str, Unit], known: Names) -> Workers | None:
    """Numbered instances of a template behind an upstream of Unix sockets; or one of the two."""
    templates: dict[str, list[Unit]] = {}
    for unit in units.values():
        if unit.template and (unit.active or unit.enabled):
            templates.setdefault(unit.template, []).append(unit)
    sockets = found.sockets if isinstance(found.sockets, frozenset) else frozenset()
    prefixes = [each.prefix for each in upstreams]
    prefixes += [name for name in sorted(templates) if name in known.prefixes or _has_sockets(name, sockets)]
    prefixes += [name for name, held in sorted(templates.items()) if any(_of_workers(unit) for unit in held)]
    if not prefixes:
        return None
    sizes = {each.prefix: len(each.numbers) for each in upstreams}
    # Where a host has several: the one that most runs of, then the one that nginx sends most to.
    prefix = max(
        dict.fromkeys(prefixes),
        key=lambda name: (sum(unit.active for unit in templates.get(name, ())), sizes.get(name, 0)),
    )
    held = templates.get(prefix) or next(
        (units for units in templates.values() if any(f"/{prefix}_" in unit.command for unit in units)), []
    )
    held = sorted(held, key=lambda unit: unit.number)
    mine = tuple(each for each in upstreams if each.prefix == prefix)
    environment = found.environment(held[0]) if held else {}
    declared = next(
        (value for name, value in sorted(environment.items()) if re.fullmatch(r"[A-Z0-9_]+_WORKERS", name)), None
    )
    return Workers(
        prefix=prefix,
        directory=mine[0].directory if mine else _directory(sockets, prefix),
        running=_instances(found, [unit for unit in held if unit.active], held),
        enabled=_instances(found, [unit for unit in held if unit.enabled], held),
        listening=_numbers(found.listening, prefix),
        sockets=_numbers(found.sockets, prefix),
        upstreams=mine,
        units=tuple(held),
        environment=environment,
        declared=declared,
    )


def _instances(found: Found, chosen: list[Unit], held: list[Unit]) -> frozenset[int] | Unknown | None:
    if isinstance(found.units, Unknown):
        return found.units
    return frozenset(unit.number for unit in chosen) if held else None


def _worker_template(unit: Unit) -> str:
    return unit.template if unit.template and (unit.active or unit.enabled) and _of_workers(unit) else ""


def _of_workers(unit: Unit) -> bool:
    return bool(_SOCKET.search(unit.command)) or "--uds" in unit.command


def _has_sockets(prefix: str, sockets: frozenset[str]) -> bool:
    return any(match["prefix"] == prefix for path in sockets if (match := _SOCKET.fullmatch(path)))


def _directory(sockets: frozenset[str], prefix: str) -> str:
    matched = [match for path in sockets if (match := _SOCKET.fullmatch(path)) and match["prefix"] == prefix]
    return matched[0]["directory"] if matched else ""


def _numbers(paths: frozenset[str] | Unknown, prefix: str) -> frozenset[int] | Unknown:
    if isinstance(paths, Unknown):
        return paths
    matched = [match for path in paths if (match := _SOCKET.fullmatch(path)) and match["prefix"] == prefix]
    return frozenset(int(match["number"]) for match in matched)


def _front(tree: nginx.Tree, workers: Workers | None) -> Front:
    targets = {each.name for each in workers.upstreams} if workers else set()
    best: tuple[int, nginx.Node | None, dict[str, nginx.Route]] = (0, None, {})
    for around, server in nginx.all_servers(tree):
        routes = {}
        for path in (*CALL_ROUTES, *POST_ROUTES, DISPATCH, *HEALTH_ROUTES):
            route = nginx.route(around, server, path)
            if route is not None and (route.target in targets or _socket_target(route, workers)):
                routes[path] = route
        score = len(routes) * 2 + any(nginx.ports(server).values())
        if routes and score > best[0]:
            best = (score, server, routes)
    _, chosen, routes = best
    certificates = []
    folder = posixpath.dirname(tree.root.file)
    for around, server in nginx.all_servers(tree):
        held, keys = (
            [posixpath.join(folder, node.args[0]) for node in server.own(name) or around.own(name) if node.args]
            for name in ("ssl_certificate", "ssl_certificate_key")
        )
        if held and keys:
            certificates.append((tuple(nginx.names(server)), held[0], keys[0]))
    if chosen is None:
        return Front(tree, None, {}, (), None, False, tuple(certificates))
    listened = nginx.ports(chosen)
    by_tls = [port for port, tls in listened.items() if tls]
    port = by_tls[0] if by_tls else next(iter(listened))
    return Front(tree, chosen, routes, tuple(nginx.names(chosen)), port, bool(by_tls), tuple(certificates))


def _socket_target(route: nginx.Route, workers: Workers | None) -> bool:
    return workers is not None and route.target.startswith("unix:") and f"/{workers.prefix}_" in route.target


def named(environment: Mapping[str, Value], canonical: str) -> Value | None:
    """The variable of that meaning: by its own name, or with something before it."""
    if canonical in environment:
        return environment[canonical]
    return next((value for name, value in sorted(environment.items()) if name.endswith(f"_{canonical}")), None)


def core_secret(environment: Mapping[str, Value]) -> Value | None:
    """What workers and API show each other."""
    exact = environment.get("CORE_SECRET")
    return exact or next((value for name, value in sorted(environment.items()) if _CORE_SECRET.fullmatch(name)), None)
