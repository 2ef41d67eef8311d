"""Values that hosts and roles must agree on. Secrets are compared by their marks, and never shown. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from callfleet.actual import Unknown
from callfleet.adopt.contradictions.finding import Finding, Side, contradiction, fleet_hosts, weakness
from callfleet.adopt.fleet import SHARED, core_secret, named
from callfleet.adopt.found import EnvironmentFile, Unit, Value
from callfleet.adopt.platform import Platform


def _environments_of(platform: Platform) -> Iterator[tuple[str, Unit, dict[str, Value]]]:
    """Host, unit, variables: each role once, workers by each of their instances."""
    for machine in platform.machines:
        units = [*(machine.workers.units if machine.workers else ()), machine.api, machine.dialler]
        for unit in units:
            if unit is not None:
                yield machine.name, unit, machine.found.environment(unit)


def shared(platform: Platform) -> Iterator[Finding]:
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
        yield contradiction(
            "shared-value", next(iter(odd[0])) if len(odd) == 1 and fewest == 1 else "",
            f"the {canonical} is not the same everywhere", sides,
            "decide which one is right; the inventory has one for all",
        )  # fmt: skip


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


def environments(platform: Platform) -> Iterator[Finding]:
    """All workers are told the same, but for what belongs to one host; and what runs is what the files say."""
    variables: dict[str, dict[str, list[Side]]] = {}
    for one, machine, workers in fleet_hosts(platform):
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
            yield contradiction(
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
                yield weakness(
                    "environment-newer", host, "a process runs with an older environment than its file",
                    [Side(f"{host}: {path}", "changed later"), Side(f"{host}: {unit.name}", "started before")],
                    "what it really runs with may differ: restart it while idle, or see what was changed",
                )  # fmt: skip


def _is_shared(name: str, value: Value) -> bool:
    return any(name == each or name.endswith(f"_{each}") for each in SHARED) or core_secret({name: value}) is not None


def diallers(platform: Platform) -> Iterator[Finding]:
    """There is one Dialler."""
    running = [each for each in platform.machines if each.dialler is not None and each.dialler.active]
    if len(running) > 1:
        yield contradiction(
            "two-diallers", "", "more than one Dialler runs: each reserves slots that the other does not know of",
            [Side(each.name, each.dialler.name) for each in running if each.dialler],
            "stop all but one",
        )  # fmt: skip
