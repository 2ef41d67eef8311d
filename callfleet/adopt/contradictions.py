"""What does not agree with what, on a platform that was built by hand; each by name, with its places. Pure.

A *contradiction* loses calls, capacity or results today, or cannot be written into one site file. A *weakness* works,
and callfleet does otherwise: it is told, and stands in nobody's way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from callfleet.actual import Unknown
from callfleet.adopt import ingress as ingresses
from callfleet.adopt import nginx
from callfleet.adopt.certificate import covered, covers, opened
from callfleet.adopt.fleet import CALL_ROUTES, DISPATCH, POST_ROUTES, SHARED, Machine, Workers, core_secret, named
from callfleet.adopt.found import EnvironmentFile, Unit, Value
from callfleet.adopt.ingress import Backend, Ingress
from callfleet.adopt.platform import FleetHost, Platform, call_names, web_names

RENEW = timedelta(days=30)
LARGEST_BODY = 16 * 1024**2
SHORT_CHECK = 5.0
"""Seconds. A busy worker answers its health check after 3 to 6 s."""


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


def find(platform: Platform, *, longest_call: int, now: datetime) -> list[Finding]:
    """All of them, in the order of the kinds below. `longest_call` in seconds."""
    found: list[Finding] = []
    for each in (_worker_counts, _gaps, _calls_per_worker, _maxconns, _registrations, _lists, _strangers, _shared,
                 _environments, _diallers, _retries, _dispatch, _upstreams, _connection, _bodies, _checks,
                 _processes):  # fmt: skip
        found += each(platform)
    found += _timeouts(platform, longest_call)
    found += _certificates(platform, now)
    return found


def _contradiction(kind: str, host: str, what: str, sides: Sequence[Side], todo: str) -> Finding:
    return Finding(kind, Weight.CONTRADICTION, host, what, tuple(sides), todo)


def _weakness(kind: str, host: str, what: str, sides: Sequence[Side], todo: str) -> Finding:
    return Finding(kind, Weight.WEAKNESS, host, what, tuple(sides), todo)


def _fleet(platform: Platform) -> Iterator[tuple[FleetHost, Machine, Workers]]:
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


# Workers


def _worker_counts(platform: Platform) -> Iterator[Finding]:
    """Units that run, the variable, nginx's upstream, sockets."""
    for one, machine, workers in _fleet(platform):
        sides: list[tuple[Side, frozenset[int] | int]] = []
        if isinstance(workers.running, frozenset):
            sides.append(
                (Side(f"{one.name}: running units {workers.prefix}@", numbers(workers.running)), workers.running)
            )
        if isinstance(workers.enabled, frozenset) and workers.enabled != workers.running:
            sides.append(
                (Side(f"{one.name}: enabled units {workers.prefix}@", numbers(workers.enabled)), workers.enabled)
            )
        if isinstance(workers.listening, frozenset) and (workers.listening or sides):
            where = f"{one.name}: sockets in {workers.directory or '?'} that somebody listens on"
            sides.append((Side(where, numbers(workers.listening)), workers.listening))
        if workers.declared and workers.declared.text is not None:
            said = workers.declared.text
            sides.append((Side(f"{one.name}: {workers.declared.place}", said), int(said) if said.isdigit() else -1))
        for upstream in _used(machine, workers):
            sides.append(
                (
                    Side(f"{one.name}: {upstream.node.place}: upstream {upstream.name}", numbers(upstream.numbers)),
                    frozenset(upstream.numbers),
                )
            )
        if (
            len({value if isinstance(value, int) else len(value) for _, value in sides}) > 1
            or len({value for _, value in sides if not isinstance(value, int)}) > 1
        ):
            yield _contradiction(
                "worker-count", one.name, "the number of workers is not the same everywhere",
                [side for side, _ in sides],
                f"decide how many there are; the inventory says {one.workers}, which is what runs",
            )  # fmt: skip
        stale = _stale(workers)
        if stale:
            yield _weakness(
                "stale-socket", one.name, "socket files that nobody listens on",
                [Side(f"{one.name}: {workers.directory}", numbers(stale))], "remove them, or see why they are left",
            )  # fmt: skip


def _stale(workers: Workers) -> frozenset[int]:
    if isinstance(workers.sockets, frozenset) and isinstance(workers.listening, frozenset) and workers.listening:
        return workers.sockets - workers.listening
    return frozenset()


def _used(machine: Machine, workers: Workers) -> list[nginx.Upstream]:
    """The upstreams that calls go to; all of them where no route is known."""
    targets = {
        route.target for path, route in (machine.front.routes if machine.front else {}).items()
        if path in (*CALL_ROUTES, *POST_ROUTES, DISPATCH)
    }  # fmt: skip
    return [each for each in workers.upstreams if not targets or each.name in targets]


def _gaps(platform: Platform) -> Iterator[Finding]:
    """Workers are numbered 1 to N."""
    for one, _, workers in _fleet(platform):
        running = workers.running
        if isinstance(running, frozenset) and running and running != frozenset(range(1, len(running) + 1)):
            yield _contradiction(
                "worker-numbers", one.name, "running workers are not numbered 1 to N without a gap",
                [Side(f"{one.name}: units {workers.prefix}@", numbers(running))],
                f"start the missing ones, or move the last ones down to 1-{len(running)}",
            )  # fmt: skip


def _calls_per_worker(platform: Platform) -> Iterator[Finding]:
    """One call per worker, one process per unit."""
    for one, _, workers in _fleet(platform):
        value = named(workers.environment, "MAX_CONCURRENT_CALLS")
        if value is not None and value.text not in (None, "1"):
            yield _contradiction(
                "calls-per-worker", one.name, "a worker takes more than one call",
                [Side(f"{one.name}: {value.place}", str(value.text))],
                "set it to 1: capacity, drain and retries count one call a worker",
            )  # fmt: skip
        for unit in workers.units:
            words = unit.command.split()
            if "--workers" in words[:-1] and words[words.index("--workers") + 1] != "1":
                yield _contradiction(
                    "calls-per-worker", one.name, "a unit starts several processes on one socket",
                    [Side(f"{one.name}: {unit.name}", f"--workers {words[words.index('--workers') + 1]}")],
                    "start one process a unit (--workers 1)",
                )  # fmt: skip
                break


def _maxconns(platform: Platform) -> Iterator[Finding]:
    """What an ingress sends to a host at once is what the host has."""
    for one in platform.fleet_hosts:
        stated = {each.server.maxconn for each in one.inbound}
        wrong = one.machine is not None and one.workers and stated != {one.workers}
        if one.inbound and (wrong or len(stated) > 1):
            sides = [
                Side(f"{each.ingress.where}: {each.place}: server {each.server.name}",
                     f"maxconn {each.server.maxconn}" if each.server.maxconn else "no maxconn: without a limit")
                for each in one.inbound
            ]  # fmt: skip
            if one.machine is not None:
                sides.append(Side(f"{one.name}: workers", str(one.workers)))
            yield _contradiction(
                "ingress-maxconn", one.name, "the ingress allows another number of calls than the host has workers",
                sides, f"make it {one.workers or 'the number of workers'} there; callfleet writes it by itself",
            )  # fmt: skip


# Registrations


def _registrations(platform: Platform) -> Iterator[Finding]:
    """A host gets calls from the ingress and from the API and the Dialler, or from all or none of them."""
    has_ingress = any(ingress.backends for ingress in platform.ingresses)
    for one in platform.fleet_hosts:
        lists = [("core_fleet", one.listed), (platform.fleet_urls_place or "FLEET_URLS", one.dialled)]
        known = [(name, url) for name, url in lists if url is not None]
        outbound = [f"{name} has {url}" for name, url in known if url]
        if has_ingress and one.inbound and known and not outbound:
            yield _contradiction(
                "inbound-only", one.name, "it gets calls from the ingress only, none that go out",
                [Side(each.ingress.where, f"{each.place}: server {each.server.name}") for each in one.inbound]
                + [Side(name, "not there") for name, _ in known],
                "callfleet registers it everywhere; if that is not wanted, leave it out of the inventory",
            )  # fmt: skip
        elif has_ingress and not one.inbound and outbound:
            yield _contradiction(
                "outbound-only", one.name, "it gets calls that go out, none from the ingress",
                [Side(name, str(url)) for name, url in known if url]
                + [Side(each.where, "no server for it") for each in platform.ingresses if each.backends],
                "callfleet adds it to the ingress; if that is not wanted, leave it out of the inventory",
            )  # fmt: skip
        elif not one.inbound and known and not outbound and one.machine is not None:
            yield _contradiction(
                "unregistered", one.name, "it has workers, and nobody sends calls to it",
                [Side(name, "not there") for name, _ in known],
                "callfleet registers it; if that is not wanted, leave it out of the inventory",
            )  # fmt: skip


def _lists(platform: Platform) -> Iterator[Finding]:
    """The API's and the Dialler's list say the same."""
    for one in platform.fleet_hosts:
        if one.listed is None or one.dialled is None or bool(one.listed) == bool(one.dialled):
            continue
        place = platform.fleet_urls_place
        yield _contradiction(
            "fleet-lists", one.name, f"it stands in {'core_fleet' if one.listed else 'FLEET_URLS'} alone",
            [Side("core_fleet", one.listed or "not there"), Side(place, one.dialled or "not there")],
            "callfleet makes both lists from the inventory",
        )  # fmt: skip


def _strangers(platform: Platform) -> Iterator[Finding]:
    """What is registered is known."""
    for stranger in platform.strangers:
        yield _contradiction(
            "unknown-host", "", "calls are sent to a host that was not looked at, or that has no workers",
            [Side("core_fleet, FLEET_URLS or ingress", stranger)],
            "read it too (--from), or take it out of the list: callfleet keeps URLs in core_fleet that are not its own",
        )  # fmt: skip


# Values


def _environments_of(platform: Platform) -> Iterator[tuple[str, Unit, dict[str, Value]]]:
    """Host, unit, variables: each role once, workers by each of their instances."""
    for machine in platform.machines:
        units = [*(machine.workers.units if machine.workers else ()), machine.api, machine.dialler]
        for unit in units:
            if unit is not None:
                yield machine.name, unit, machine.found.environment(unit)


def _shared(platform: Platform) -> Iterator[Finding]:
    """Values that must be the same wherever they stand."""
    for canonical in (*SHARED, "core secret"):
        held: dict[str, list[Side]] = {}
        hosts: dict[str, set[str]] = {}
        for host, _, environment in _environments_of(platform):
            value = core_secret(environment) if canonical == "core secret" else named(environment, canonical)
            if value is None or not (value.mark or value.text):
                continue
            side = Side(f"{host}: {value.place}", "" if value.secret else _short(value.text or ""))
            held.setdefault(value.mark, [])
            if side not in held[value.mark]:
                held[value.mark].append(side)
            hosts.setdefault(value.mark, set()).add(host)
        if len(held) < 2:
            continue
        groups = sorted(held.values(), key=len, reverse=True)
        sides = [
            Side(side.where, side.says or f"value {'ABCDEFGHIJ'[min(index, 9)]} (not shown)")
            for index, group in enumerate(groups) for side in group
        ]  # fmt: skip
        fewest = min(map(len, hosts.values()))
        odd = [held for held in hosts.values() if len(held) == fewest]
        yield _contradiction(
            "shared-value", next(iter(odd[0])) if len(odd) == 1 and fewest == 1 else "",
            f"the {canonical} is not the same everywhere", sides,
            "decide which one is right; the inventory has one for all",
        )  # fmt: skip


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def _environments(platform: Platform) -> Iterator[Finding]:
    """All workers are told the same, but for what belongs to one host; and what runs is what the files say."""
    variables: dict[str, dict[str, list[Side]]] = {}
    for one, machine, workers in _fleet(platform):
        for unit in workers.units:
            for name, value in machine.found.environment(unit).items():
                if name == (workers.declared.name if workers.declared else "") or _is_shared(name, value):
                    continue
                says = "a value (not shown)" if value.secret else _short(value.text or "")
                sides = variables.setdefault(name, {}).setdefault(value.mark, [])
                if (side := Side(f"{one.name}: {value.place}", says)) not in sides:
                    sides.append(side)
    for name, held in sorted(variables.items()):
        if len(held) > 1 and name != "MAX_CONCURRENT_CALLS":
            yield _contradiction(
                "environment-differs", "", f"workers are not all told the same {name}",
                [side for sides in held.values() for side in sides],
                "one value stands for all workers of a site (core.environment): decide which",
            )  # fmt: skip
    for host, unit, _ in _environments_of(platform):
        speaker = platform.machine(host)
        files = speaker.found.environments if speaker else {}
        for path in unit.environment_files:
            file = None if isinstance(files, Unknown) else files.get(path)
            if isinstance(file, EnvironmentFile) and file.changed and unit.since and file.changed > unit.since:
                yield _weakness(
                    "environment-newer", host, "a process runs with an older environment than its file",
                    [Side(f"{host}: {path}", "changed later"), Side(f"{host}: {unit.name}", "started before")],
                    "what it really runs with may differ: restart it while idle, or see what was changed",
                )  # fmt: skip


def _is_shared(name: str, value: Value) -> bool:
    return any(name == each or name.endswith(f"_{each}") for each in SHARED) or core_secret({name: value}) is not None


def _diallers(platform: Platform) -> Iterator[Finding]:
    """There is one Dialler."""
    running = [each for each in platform.machines if each.dialler is not None and each.dialler.active]
    if len(running) > 1:
        yield _contradiction(
            "two-diallers", "", "more than one Dialler runs: each reserves slots that the other does not know of",
            [Side(each.name, each.dialler.name) for each in running if each.dialler],
            "stop all but one",
        )  # fmt: skip


# nginx


def _routes(platform: Platform, *paths: str) -> Iterator[tuple[FleetHost, Workers, str, nginx.Route]]:
    for one, machine, workers in _fleet(platform):
        if machine.front is not None:
            for path in paths:
                if path in machine.front.routes:
                    yield one, workers, path, machine.front.routes[path]


def _retry(route: nginx.Route) -> tuple[set[str], str]:
    held = route.holding("proxy_next_upstream")
    return (set(held[-1].args), held[-1].place) if held else ({"error", "timeout"}, route.place)


def _tries(route: nginx.Route) -> int:
    held = route.holding("proxy_next_upstream_tries")
    return int(held[-1].args[0]) if held and held[-1].args and held[-1].args[0].isdigit() else 0


def _grouped(
    platform: Platform, paths: Sequence[str], wrong: Callable[[Workers, nginx.Route], tuple[str, str] | None]
) -> Iterator[tuple[FleetHost, Workers, list[Side]]]:
    """By host, the routes of which `wrong` says something (where, what)."""
    found: dict[str, tuple[FleetHost, Workers, list[Side]]] = {}
    for one, workers, path, route in _routes(platform, *paths):
        if said := wrong(workers, route):
            found.setdefault(one.name, (one, workers, []))[2].append(Side(f"{one.name}: {said[0]}: {path}", said[1]))
    yield from found.values()


def _retries(platform: Platform) -> Iterator[Finding]:
    """POST routes try the other workers."""

    def missing(_: Workers, route: nginx.Route) -> tuple[str, str] | None:
        words, place = _retry(route)
        return None if {"http_429", "non_idempotent"} <= words else (place, " ".join(sorted(words)) + " only")

    def few(workers: Workers, route: nginx.Route) -> tuple[str, str] | None:
        words, place = _retry(route)
        tries = _tries(route)
        enough = max([len(each.numbers) for each in workers.upstreams] + [workers.count])
        if {"http_429", "non_idempotent"} <= words and 0 < tries < enough:
            return place, f"proxy_next_upstream_tries {tries} with {enough} workers"
        return None

    for one, _, sides in _grouped(platform, POST_ROUTES, missing):
        yield _contradiction(
            "no-retry", one.name, "a POST route does not try the other workers: 429 with workers free", sides,
            "proxy_next_upstream error timeout http_429 non_idempotent; callfleet's own proxy does it",
        )  # fmt: skip
    for one, _, sides in _grouped(platform, POST_ROUTES, few):
        yield _contradiction(
            "retry-tries", one.name, "a POST route tries fewer workers than there are", sides,
            "as many tries as workers; callfleet's own proxy does it",
        )  # fmt: skip


def _dispatch(platform: Platform) -> Iterator[Finding]:
    """Dispatch is never sent twice."""

    def retried(_: Workers, route: nginx.Route) -> tuple[str, str] | None:
        words, place = _retry(route)
        return (place, " ".join(sorted(words))) if "non_idempotent" in words else None

    for one, _, sides in _grouped(platform, (DISPATCH,), retried):
        yield _contradiction(
            "dispatch-retry", one.name, "dispatch is retried: its refusal hung up the caller's leg already", sides,
            "take the retry block out of that location before a handover",
        )  # fmt: skip


def _upstreams(platform: Platform) -> Iterator[Finding]:
    """Nothing goes to workers past their sockets' names, and max_conns counts for all processes of nginx."""
    for one, machine, workers in _fleet(platform):
        for upstream in workers.upstreams:
            keepalive = [node for node in upstream.node.own("keepalive") if node.args[:1] != ("0",)]
            if keepalive:
                yield _contradiction(
                    "upstream-keepalive", one.name, "nginx keeps connections to workers: a withdrawn slot still gets "
                    "requests", [Side(f"{one.name}: {node.place}", node.text) for node in keepalive],
                    "take it out: a handover is refused with it",
                )  # fmt: skip
        for upstream in _used(machine, workers):
            limited = [node for node in upstream.servers if any(arg.startswith("max_conns=") for arg in node.args)]
            if limited and not upstream.node.own("zone") and _several(machine):
                yield _contradiction(
                    "max-conns-unshared", one.name, "max_conns without a zone counts in each process of nginx alone",
                    [Side(f"{one.name}: {limited[0].place}", limited[0].text),
                     Side(f"{one.name}: {upstream.node.place}", "no zone"),
                     Side(f"{one.name}: worker_processes", _processes_of(machine))],
                    "give the upstream a zone, or nginx one process",
                )  # fmt: skip
            other = [node for node in upstream.servers if set(node.args[1:]) & {"down", "backup"}]
            if other:
                yield _contradiction(
                    "upstream-server", one.name, "a worker is marked down or backup",
                    [Side(f"{one.name}: {node.place}", node.text) for node in other],
                    "slots are all the same in callfleet: take the mark off, or stop the worker",
                )  # fmt: skip


def _processes_of(machine: Machine) -> str:
    held = machine.front.tree.root.own("worker_processes") if machine.front else []
    return held[-1].args[0] if held and held[-1].args else "1"


def _several(machine: Machine) -> bool:
    said = _processes_of(machine)
    return said != "1" and not (said == "auto" and machine.found.cpus == 1)


def _processes(platform: Platform) -> Iterator[Finding]:
    """Sockets lie where nginx sees them."""
    for one, _, workers in _fleet(platform):
        private = [unit for unit in workers.units if unit.properties.get("PrivateTmp") == "yes"]
        if private and workers.directory.startswith("/tmp"):  # noqa: S108 - the application's fixed path
            yield _contradiction(
                "private-tmp", one.name, "workers have a /tmp of their own, so nobody else sees their sockets",
                [Side(f"{one.name}: {private[0].name}", "PrivateTmp=yes")], "PrivateTmp=no in the unit",
            )  # fmt: skip


def _connection(platform: Platform) -> Iterator[Finding]:
    """The Connection header follows the request."""

    def hard(_: Workers, route: nginx.Route) -> tuple[str, str] | None:
        for node in route.holding("proxy_set_header"):
            if len(node.args) == 2 and node.args[0].lower() == "connection" and node.args[1].lower() == "upgrade":
                return node.place, node.text
        return None

    for one, _, sides in _grouped(platform, (*POST_ROUTES, DISPATCH), hard):
        yield _contradiction(
            "connection-header", one.name, 'a fixed Connection "upgrade" breaks POST routes', sides,
            "map $http_upgrade to it; callfleet's own proxy needs none",
        )  # fmt: skip


def body_limit(route: nginx.Route) -> tuple[int, str]:
    """Bytes that a request's body may have (0: any number), and where it is said."""
    held = route.holding("client_max_body_size")
    said = nginx.size(held[-1].args[0]) if held and held[-1].args else None
    return (said, held[-1].place) if said is not None else (1024**2, f"{route.place} (nginx's default)")


def idle_timeout(route: nginx.Route) -> tuple[float, str, bool]:
    """Seconds of silence after which nginx ends a call, where it is said, and whether it is said at all."""
    held = route.holding("proxy_read_timeout")
    said = nginx.seconds(" ".join(held[-1].args)) if held else None
    return (said, held[-1].place, True) if said is not None else (60.0, route.place, False)


def _bodies(platform: Platform) -> Iterator[Finding]:
    """One body limit for all, that a proxy can hold and send again."""
    limits: dict[int, list[Side]] = {}
    for one, _, path, route in _routes(platform, *POST_ROUTES):
        limit, place = body_limit(route)
        limits.setdefault(limit, []).append(Side(f"{one.name}: {place}: {path}", f"{limit} bytes"))
    sides = [side for held in limits.values() for side in held]
    if any(limit == 0 or limit > LARGEST_BODY for limit in limits):
        yield _contradiction(
            "body-limit", "", "a request may be larger than a proxy can keep for another try", sides,
            f"at most {LARGEST_BODY} bytes; the inventory says so",
        )  # fmt: skip
    elif len(limits) > 1:
        yield _contradiction(
            "body-limit", "", "the body limit is not the same everywhere", sides,
            "one limit stands for all (calls.largest_body_bytes); the inventory has the largest",
        )  # fmt: skip


# Timeouts


def _timeouts(platform: Platform, longest: int) -> Iterator[Finding]:
    """A call may be as long as it may be, also where one side is silent."""
    said: list[tuple[str, Side, bool]] = []
    for one, _, path, route in _routes(platform, *CALL_ROUTES):
        value, place, stated = idle_timeout(route)
        if value < longest:
            text = f"proxy_read_timeout {value:g} s" if stated else f"{value:g} s, nginx's default"
            said.append((one.name, Side(f"{one.name}: {place}: {path.rpartition('/')[0]}", text), stated))
    for ingress, backend in _backends(platform):
        timeout = ingresses.timeout(backend.section, "tunnel")
        if timeout is None:
            found = [ingresses.timeout(backend.section, "server")]
            found += [ingresses.timeout(front, "client") for front in ingresses.frontends_of(ingress, backend)]
            timeout = min((each for each in found if each), key=lambda each: each[0], default=None)
        if timeout and timeout[0] < longest:
            value, line = timeout
            said.append((backend.name, Side(f"{ingress.where}: {line.place}", line.text), True))
    stated_sides = [side for _, side, stated in said if stated]
    default_sides = [side for _, side, stated in said if not stated]
    what = f"a call that is silent is cut before the longest call ({longest} s) ends"
    todo = "above the longest call, if calls may be silent; the inventory keeps it (calls.tunnel_timeout_seconds)"
    if stated_sides:
        yield _contradiction("timeout-short", "", what, stated_sides, todo)
    if default_sides:
        yield _weakness("timeout-default", "", what, default_sides, todo)


# The ingress's checks


def _backends(platform: Platform) -> Iterator[tuple[Ingress, Backend]]:
    for ingress in platform.ingresses:
        for backend in ingress.backends:
            yield ingress, backend


def _checks(platform: Platform) -> Iterator[Finding]:
    """A check takes an idle host for idle, whatever its size and however its answer is laid out."""
    for ingress, backend in _backends(platform):
        hosts = [
            one for one in platform.fleet_hosts
            if any(each.ingress is ingress and each.backend is backend for each in one.inbound)
        ]  # fmt: skip
        most = max([one.workers or 0 for one in hosts] + [each.maxconn or 0 for each in backend.servers])
        if (wanted := ingresses.expectation(backend.section)) is not None:
            yield from _expectation(ingress, backend, wanted, most)
        checked = [server for server in backend.servers if "check" in server.options]
        if not checked:
            yield _contradiction(
                "no-check", "", "the ingress sends calls to hosts without a health check",
                [Side(f"{ingress.where}: {backend.servers[0].line.place}", f"backend {backend.name}")],
                "add check to its servers; callfleet's own ingress does",
            )  # fmt: skip
        elif any(server.options.get("fall", "3") == "1" for server in checked):
            yield _contradiction(
                "fall-1", "", "one slow answer takes a host out, and all its load goes elsewhere",
                [Side(f"{ingress.where}: {each.line.place}", "fall 1") for each in checked
                 if each.options.get("fall", "3") == "1"],
                "fall 2 at least",
            )  # fmt: skip
        yield from _check_timeouts(ingress, backend, checked)
        balance = backend.section.last("balance")
        if balance is not None and balance.words[1:2] in (("leastconn",), ("first",), ("source",), ("random",)):
            yield _weakness(
                "balance", "", f"{balance.words[1]} counts only the calls that the ingress routed itself",
                [Side(f"{ingress.where}: {balance.place}", balance.text)], "callfleet's own ingress uses roundrobin",
            )  # fmt: skip


def _expectation(ingress: Ingress, backend: Backend, wanted: ingresses.Expectation, workers: int) -> Iterator[Finding]:
    where = Side(f"{ingress.where}: {wanted.line.place}", wanted.line.text)
    counts = range(1, workers + 1)
    compact = [wanted.takes(ingresses.fleet_health(free, workers)) for free in counts]
    if any(each is None for each in compact):
        yield _weakness("check-unknown", "", "the check's pattern cannot be tried here", [where], "compare it by hand")
        return
    down = [free for free, good in zip(counts, compact, strict=True) if not good]
    if down:
        yield _contradiction(
            "check-cap", "", f"a host with {numbers(down)} of {workers} workers free is taken for down",
            [where, Side(f"backend {backend.name}", f"hosts of up to {workers} workers")],
            "callfleet's own check asks for liveness only",
        )  # fmt: skip
    good = [free for free, fine in zip(counts, compact, strict=True) if fine][:1]
    for free in good:
        others = (
            ingresses.fleet_health(free, workers, spaced=True),
            ingresses.fleet_health(free, workers, first=True),
        )
        if not all(wanted.takes(body) for body in others):
            yield _weakness(
                "check-json", "", "the check depends on how the answer's JSON is laid out: blanks or another order take"
                " every host down at once", [where], "callfleet's own check asks for liveness only",
            )  # fmt: skip


def _check_timeouts(ingress: Ingress, backend: Backend, checked: Sequence[object]) -> Iterator[Finding]:
    stated = ingresses.timeout(backend.section, "check")
    if not checked or (stated and stated[0] >= SHORT_CHECK):
        return
    section = backend.section
    server = backend.servers[0]
    sides = [Side(f"{ingress.where}: {stated[1].place}", stated[1].text)] if stated else [
        Side(f"{ingress.where}: {server.line.place}", f"inter {server.options.get('inter', '2s')}, no timeout check")
    ]  # fmt: skip
    yield _weakness(
        "check-timeout", "", f"backend {section.name}: a busy host that answers its check late is taken for down",
        sides, f"timeout check {SHORT_CHECK:g}s; callfleet's own ingress says it",
    )  # fmt: skip


# Certificates


def _certificates(platform: Platform, now: datetime) -> Iterator[Finding]:
    """What a name is served with covers it and lasts."""
    for machine in platform.machines:
        for name, path in served(platform, machine).items():
            found = machine.found.certificates
            pem = None if isinstance(found, Unknown) else found.get(path)
            if pem is None or isinstance(pem, Unknown):
                continue
            where = Side(f"{machine.name}: {path}", "")
            certificate = opened(pem)
            if certificate is None:
                yield _contradiction(
                    "certificate-unreadable", machine.name, f"the file that {name} is served with holds no certificate",
                    [Side(where.where, "no certificate")], "put the right file there",
                )  # fmt: skip
                continue
            names = covered(certificate)
            if not covers(names, name):
                yield _contradiction(
                    "certificate-name", machine.name, f"{name} is served with a certificate that does not cover it",
                    [Side(where.where, f"covers {', '.join(names) or 'no name'}")],
                    f"one that covers {name}, before callfleet takes the name over",
                )  # fmt: skip
            until = certificate.not_valid_after_utc
            if until - now < RENEW:
                word = "ended" if until < now else "ends"
                yield _contradiction(
                    "certificate-end", machine.name, f"the certificate of {name} {word} on {until:%Y-%m-%d}",
                    [Side(where.where, f"until {until:%Y-%m-%d}")],
                    "renew it; see `callfleet certificates obtain`",
                )  # fmt: skip


def served(platform: Platform, machine: Machine) -> dict[str, str]:
    """By name, the file of the certificate that this machine serves it with."""
    found: dict[str, str] = {}
    if machine.front is not None:
        mine = [one.public_name for one in platform.fleet_hosts if one.machine is machine]
        for names, path, _ in machine.front.certificates:
            for name in names or mine:
                if name and not name.startswith("*."):
                    found.setdefault(name, path)
    ingress = next((each for each in platform.ingresses if each.where == machine.name), None)
    if ingress is not None:
        wanted = [*call_names(platform), *(n for m in platform.machines for n in web_names(m) if n in ingress.names)]
        files = _expanded(machine, ingress.certificates)
        for name in wanted:
            good = [path for path, names in files.items() if covers(names, name)]
            if good or files:
                found.setdefault(name, good[0] if good else next(iter(files)))
    return found


def _expanded(machine: Machine, paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The files behind `crt` words, a folder being all of its files, with the names that each covers."""
    held = machine.found.certificates
    if isinstance(held, Unknown):
        return {}
    found = {}
    for path, pem in held.items():
        if any(path == each or path.startswith(each.rstrip("/") + "/") for each in paths) and isinstance(pem, bytes):
            certificate = opened(pem)
            found[path] = covered(certificate) if certificate else ()
    return found


def held_for(platform: Platform, name: str) -> tuple[Machine, str] | None:
    """Where a certificate lies that a name is served with, or that covers it and is served with another name."""
    for machine in platform.machines:
        if path := served(platform, machine).get(name):
            return machine, path
    for machine in platform.machines:
        held = machine.found.certificates
        for path, pem in () if isinstance(held, Unknown) else held.items():
            certificate = opened(pem) if isinstance(pem, bytes) else None
            if certificate is not None and covers(covered(certificate), name):
                return machine, path
    return None
