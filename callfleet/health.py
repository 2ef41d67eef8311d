"""What a site is right now, as a document: hosts, slots, calls, releases, drift, half registrations. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from callfleet.actual import Actual, Slot, SlotWord, Unknown
from callfleet.plan import Word
from callfleet.report import Looked, waits
from callfleet.site import Host, Site

SCHEMA = 1


def document(site: Site, hosts: Iterable[Looked], unreached: Mapping[str, str]) -> dict[str, Any]:
    """The state of a site. Unknown is null, and said in `notes`."""
    looked = list(hosts)
    every = [_host(site, one) for one in looked]
    every += [_away(site.host(name), why) for name, why in unreached.items()]
    slots = [slot for host in every for slot in host["slots"]]
    return {
        "schema": SCHEMA,
        "kind": "status",
        "site": site.name,
        "release": site.release.release,
        "slots": dict(Counter(slot["state"] for slot in slots)),
        "calls": sum(slot["calls"] or 0 for slot in slots),
        "hosts": every,
        "notes": list(_registrations(site, looked)),
    }


def _host(site: Site, one: Looked) -> dict[str, Any]:
    host, actual = site.host(one.name), one.actual
    mark = actual.site if isinstance(actual.site, Mapping) else {}
    changes = list(one.plan.changes) if one.plan else []
    return {
        "name": host.name,
        "address": host.address,
        "roles": sorted(host.roles),
        "fleet": host.fleet,
        "reached": not isinstance(actual.os, Unknown),
        "release": mark.get("release"),
        "callfleet": mark.get("callfleet"),
        "slots": list(_slots(site, actual)),
        "changes": None if one.plan is None else len(changes),
        "waiting": sum(waits(change) for change in changes),
        "blocked": [str(change) for change in changes if change.word is Word.BLOCKED],
        "memory": _memory(actual),
        "disk": _disk(actual),
        "notes": list(_notes(host, one)),
    }


def _away(host: Host, why: str) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(("release", "callfleet", "changes", "memory", "disk"))
    return {
        "name": host.name,
        "address": host.address,
        "roles": sorted(host.roles),
        "fleet": host.fleet,
        "reached": False,
        "slots": [
            {"slot": number, "state": "unknown", "calls": None, "drained": None, "why": "its host is not reached"}
            for number in range(1, host.workers + 1)
        ],
        "waiting": 0,
        "blocked": [],
        "notes": [f"not reached: {why}"],
    } | empty


def _slots(site: Site, actual: Actual) -> Iterator[dict[str, Any]]:
    stack = site.brand.stack
    found = actual.stack_slots(stack) if isinstance(actual.slots, Unknown) or stack in actual.slots else None
    drains = actual.drains(stack)
    for slot in () if found is None or isinstance(found, Unknown) else found:
        drained = None if isinstance(drains, Unknown) else drains.get(str(slot.number))
        yield {
            "slot": slot.number,
            "state": str(slot.word),
            "calls": slot.calls,
            "drained": drained,
            "why": _why(slot, drained),
        }


def _why(slot: Slot, drained: Mapping[str, Any] | None) -> str:
    """Why a slot takes no call right now; empty when it takes one."""
    if drained is not None:
        reason = f": {drained['reason']}" if drained.get("reason") else ""
        return f"drained by {drained.get('who', 'somebody')} at {drained.get('at', 'an unknown time')}{reason}"
    return {
        SlotWord.IDLE: "",
        SlotWord.ON_A_CALL: "it is on a call",
        SlotWord.DRAINING: "it is withdrawn, and its call goes on",
        SlotWord.DRAINED: "it is withdrawn; the next apply publishes it",
        SlotWord.DEAD: "it has no process; the next apply starts it",
        SlotWord.UNPUBLISHED: "it has not passed its canary call; the next apply tries it",
        SlotWord.UNKNOWN: f"unknown, which counts as busy: {slot.why or 'no clear answer'}",
    }[slot.word]


def _memory(actual: Actual) -> dict[str, int] | None:
    """Bytes."""
    if isinstance(actual.memory, Unknown):
        return None
    return {"total": actual.memory.total, "available": actual.memory.available}


def _disk(actual: Actual) -> dict[str, int] | None:
    """Bytes of the fullest filesystem that was asked about."""
    if isinstance(actual.disks, Unknown) or not actual.disks:
        return None
    fullest = min(actual.disks.values(), key=lambda disk: disk.free / max(disk.size, 1))
    return {"size": fullest.size, "free": fullest.free}


def _notes(host: Host, one: Looked) -> Iterator[str]:
    if one.error:
        yield one.error
    if isinstance(one.actual.os, Unknown):
        return
    if one.actual.site is None:
        yield "not converged yet"
    found = one.actual.clock
    if not isinstance(found, Unknown) and found.synchronized is False:
        yield "its clock is not kept by anything"
    if host.workers and not any(one.actual.slots.values() if isinstance(one.actual.slots, Mapping) else ()):
        yield "no slots: its slot program is not there or does not answer"


def _registrations(site: Site, hosts: Iterable[Looked]) -> Iterator[str]:
    """Fleet hosts that are registered on one side only, or not at all, by the marks of ingress and app hosts."""
    by_role: dict[str, set[str]] = {}
    for one in hosts:
        mark = one.actual.site
        for role in site.host(one.name).roles & {"ingress", "app"}:
            names = set(mark.get("registered", ())) if isinstance(mark, Mapping) else set()
            by_role[role] = by_role.get(role, names) & names
    for host in site.fleet_hosts:
        sides = {role: host.name in names for role, names in by_role.items()}
        if sides and not any(sides.values()):
            yield f"{host.name} is registered nowhere: it gets no calls; the next apply registers it"
        elif not all(sides.values()):
            there = "inbound" if sides.get("ingress") else "outbound"
            yield f"half registration: {host.name} {there} only; the next apply completes it"
