"""nginx in front of the workers: what it does with each route of their contract. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from callfleet.adopt import nginx
from callfleet.adopt.contradictions.finding import Finding, Side, contradiction, fleet_hosts
from callfleet.adopt.fleet import CALL_ROUTES, DISPATCH, POST_ROUTES, Machine, Workers
from callfleet.adopt.platform import FleetHost, Platform

LARGEST_BODY = 16 * 1024**2


def used_upstreams(machine: Machine, workers: Workers) -> list[nginx.Upstream]:
    """The upstreams that calls go to; all of them where no route is known."""
    targets = {
        route.target for path, route in (machine.front.routes if machine.front else {}).items()
        if path in (*CALL_ROUTES, *POST_ROUTES, DISPATCH)
    }  # fmt: skip
    return [each for each in workers.upstreams if not targets or each.name in targets]


def routes(platform: Platform, *paths: str) -> Iterator[tuple[FleetHost, Workers, str, nginx.Route]]:
    """Of each fleet host, what answers these paths and leads to workers."""
    for one, machine, workers in fleet_hosts(platform):
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
    for one, workers, path, route in routes(platform, *paths):
        if said := wrong(workers, route):
            found.setdefault(one.name, (one, workers, []))[2].append(Side(f"{one.name}: {said[0]}: {path}", said[1]))
    yield from found.values()


def retries(platform: Platform) -> Iterator[Finding]:
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
        yield contradiction(
            "no-retry", one.name, "a POST route does not try the other workers: 429 with workers free", sides,
            "proxy_next_upstream error timeout http_429 non_idempotent; callfleet's own proxy does it",
        )  # fmt: skip
    for one, _, sides in _grouped(platform, POST_ROUTES, few):
        yield contradiction(
            "retry-tries", one.name, "a POST route tries fewer workers than there are", sides,
            "as many tries as workers; callfleet's own proxy does it",
        )  # fmt: skip


def dispatch(platform: Platform) -> Iterator[Finding]:
    """Dispatch is never sent twice."""

    def retried(_: Workers, route: nginx.Route) -> tuple[str, str] | None:
        words, place = _retry(route)
        return (place, " ".join(sorted(words))) if "non_idempotent" in words else None

    for one, _, sides in _grouped(platform, (DISPATCH,), retried):
        yield contradiction(
            "dispatch-retry", one.name, "dispatch is retried: its refusal hung up the caller's leg already", sides,
            "take the retry block out of that location before a handover",
        )  # fmt: skip


def upstreams(platform: Platform) -> Iterator[Finding]:
    """Nothing goes to workers past their sockets' names, and max_conns counts for all processes of nginx."""
    for one, machine, workers in fleet_hosts(platform):
        for upstream in workers.upstreams:
            keepalive = [node for node in upstream.node.own("keepalive") if node.args[:1] != ("0",)]
            if keepalive:
                yield contradiction(
                    "upstream-keepalive", one.name, "nginx keeps connections to workers: a withdrawn slot still gets "
                    "requests", [Side(f"{one.name}: {node.place}", node.text) for node in keepalive],
                    "take it out: a handover is refused with it",
                )  # fmt: skip
        for upstream in used_upstreams(machine, workers):
            limited = [node for node in upstream.servers if any(arg.startswith("max_conns=") for arg in node.args)]
            if limited and not upstream.node.own("zone") and _several(machine):
                yield contradiction(
                    "max-conns-unshared", one.name, "max_conns without a zone counts in each process of nginx alone",
                    [Side(f"{one.name}: {limited[0].place}", limited[0].text),
                     Side(f"{one.name}: {upstream.node.place}", "no zone"),
                     Side(f"{one.name}: worker_processes", _processes_of(machine))],
                    "give the upstream a zone, or nginx one process",
                )  # fmt: skip
            other = [node for node in upstream.servers if set(node.args[1:]) & {"down", "backup"}]
            if other:
                yield contradiction(
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


def connection(platform: Platform) -> Iterator[Finding]:
    """The Connection header follows the request."""

    def hard(_: Workers, route: nginx.Route) -> tuple[str, str] | None:
        for node in route.holding("proxy_set_header"):
            if len(node.args) == 2 and node.args[0].lower() == "connection" and node.args[1].lower() == "upgrade":
                return node.place, node.text
        return None

    for one, _, sides in _grouped(platform, (*POST_ROUTES, DISPATCH), hard):
        yield contradiction(
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


def bodies(platform: Platform) -> Iterator[Finding]:
    """One body limit for all, that a proxy can hold and send again."""
    limits: dict[int, list[Side]] = {}
    for one, _, path, route in routes(platform, *POST_ROUTES):
        limit, place = body_limit(route)
        limits.setdefault(limit, []).append(Side(f"{one.name}: {place}: {path}", f"{limit} bytes"))
    sides = [side for held in limits.values() for side in held]
    if any(limit == 0 or limit > LARGEST_BODY for limit in limits):
        yield contradiction(
            "body-limit", "", "a request may be larger than a proxy can keep for another try", sides,
            f"at most {LARGEST_BODY} bytes; the inventory says so",
        )  # fmt: skip
    elif len(limits) > 1:
        yield contradiction(
            "body-limit", "", "the body limit is not the same everywhere", sides,
            "one limit stands for all (calls.largest_body_bytes); the inventory has the largest",
        )  # fmt: skip
