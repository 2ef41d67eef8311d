"""How many workers a host has, by all that say so. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from callfleet.adopt.contradictions.finding import Finding, Side, contradiction, fleet_hosts, numbers, weakness
from callfleet.adopt.contradictions.front import used_upstreams
from callfleet.adopt.fleet import Workers, named
from callfleet.adopt.platform import Platform


def worker_counts(platform: Platform) -> Iterator[Finding]:
    """Units that run, the variable, nginx's upstream, sockets."""
    for one, machine, workers in fleet_hosts(platform):
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
        for upstream in used_upstreams(machine, workers):
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
            yield contradiction(
                "worker-count", one.name, "the number of workers is not the same everywhere",
                [side for side, _ in sides],
                f"decide how many there are; the inventory says {one.workers}, which is what runs",
            )  # fmt: skip
        stale = _stale(workers)
        if stale:
            yield weakness(
                "stale-socket", one.name, "socket files that nobody listens on",
                [Side(f"{one.name}: {workers.directory}", numbers(stale))], "remove them, or see why they are left",
            )  # fmt: skip


def _stale(workers: Workers) -> frozenset[int]:
    if isinstance(workers.sockets, frozenset) and isinstance(workers.listening, frozenset) and workers.listening:
        return workers.sockets - workers.listening
    return frozenset()


def gaps(platform: Platform) -> Iterator[Finding]:
    """Workers are numbered 1 to N."""
    for one, _, workers in fleet_hosts(platform):
        running = workers.running
        if isinstance(running, frozenset) and running and running != frozenset(range(1, len(running) + 1)):
            yield contradiction(
                "worker-numbers", one.name, "running workers are not numbered 1 to N without a gap",
                [Side(f"{one.name}: units {workers.prefix}@", numbers(running))],
                f"start the missing ones, or move the last ones down to 1-{len(running)}",
            )  # fmt: skip


def calls_per_worker(platform: Platform) -> Iterator[Finding]:
    """One call per worker, one process per unit."""
    for one, _, workers in fleet_hosts(platform):
        value = named(workers.environment, "MAX_CONCURRENT_CALLS")
        if value is not None and value.text not in (None, "1"):
            yield contradiction(
                "calls-per-worker", one.name, "a worker takes more than one call",
                [Side(f"{one.name}: {value.place}", str(value.text))],
                "set it to 1: capacity, drain and retries count one call a worker",
            )  # fmt: skip
        for unit in workers.units:
            words = unit.command.split()
            if "--workers" in words[:-1] and words[words.index("--workers") + 1] != "1":
                yield contradiction(
                    "calls-per-worker", one.name, "a unit starts several processes on one socket",
                    [Side(f"{one.name}: {unit.name}", f"--workers {words[words.index('--workers') + 1]}")],
                    "start one process a unit (--workers 1)",
                )  # fmt: skip
                break


def maxconns(platform: Platform) -> Iterator[Finding]:
    """What an ingress sends to a host at once is what the host has."""
    for one in platform.fleet_hosts:
        stated = {each.server.maxconn for each in one.inbound}
        wrong = one.machine is not None and one.workers and stated != {one.workers}
        if one.inbound and (wrong or len(stated) > 1):
            sides = [
                Side(f"{each.ingress.place(each.server.line)}: server {each.server.name}",
                     f"maxconn {each.server.maxconn}" if each.server.maxconn else "no maxconn: without a limit")
                for each in one.inbound
            ]  # fmt: skip
            if one.machine is not None:
                sides.append(Side(f"{one.name}: workers", str(one.workers)))
            yield contradiction(
                "ingress-maxconn", one.name, "the ingress allows another number of calls than the host has workers",
                sides, f"make it {one.workers or 'the number of workers'} there; callfleet writes it by itself",
            )  # fmt: skip


def private_directories(platform: Platform) -> Iterator[Finding]:
    """Sockets lie where nginx sees them."""
    for one, _, workers in fleet_hosts(platform):
        private = [unit for unit in workers.units if unit.properties.get("PrivateTmp") == "yes"]
        if private and workers.directory.startswith("/tmp"):  # noqa: S108 - the application's fixed path
            yield contradiction(
                "private-tmp", one.name, "workers have a /tmp of their own, so nobody else sees their sockets",
                [Side(f"{one.name}: {private[0].name}", "PrivateTmp=yes")], "PrivateTmp=no in the unit",
            )  # fmt: skip
