"""What a site is right now, as a document: hosts, slots, calls, releases, drift, half registrations. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from callfleet.actual import Actual, Container, Proxy, Slot, SlotWord, Unknown
from callfleet.certificates import served
from callfleet.desired.ingress import ADMIN_SOCKET, MASTER_SOCKET
from callfleet.plan import Word
from callfleet.report import Looked, call_ages, waits
from callfleet.site import Host, Site

SCHEMA = 1
ENDING_DAYS = 21
"""A certificate that has fewer days left is worth a note."""


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
        "proxies": list(_proxies(actual)),
        "certificates": (certificates := list(_certificates(actual))),
        "services": (services := list(_services(site, actual))),
        "notes": [*_notes(host, one), *_ending(certificates), *_unreleased(services, site)],
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
            {
                "slot": number,
                "state": "unknown",
                "calls": None,
                "age": None,
                "drained": None,
                "why": "its host is not reached",
            }
            for number in range(1, host.workers + 1)
        ],
        "waiting": 0,
        "blocked": [],
        "proxies": [],
        "certificates": [],
        "services": [],
        "notes": [f"not reached: {why}"],
    } | empty


def _slots(site: Site, actual: Actual) -> Iterator[dict[str, Any]]:
    stack = site.brand.stack
    found = actual.stack_slots(stack) if isinstance(actual.slots, Unknown) or stack in actual.slots else None
    drains, ages = actual.drains(stack), call_ages(actual, stack)
    for slot in () if found is None or isinstance(found, Unknown) else found:
        drained = None if isinstance(drains, Unknown) else drains.get(str(slot.number))
        yield {
            "slot": slot.number,
            "state": str(slot.word),
            "calls": slot.calls,
            "age": ages.get(slot.number) if slot.calls else None,
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


def _proxies(actual: Actual) -> Iterator[dict[str, Any]]:
    """Each proxy, how often it was reloaded, and the processes that only finish what they carried before."""
    proxies = {} if isinstance(actual.proxies, Unknown) else actual.proxies
    for socket, proxy in proxies.items():
        stack = "" if socket == ADMIN_SOCKET else socket.split("/")[2]
        processes = actual.processes(MASTER_SOCKET if not stack else socket.replace("admin.sock", "master.sock"))
        known = proxy if isinstance(proxy, Proxy) else None
        value: dict[str, Any] = {
            "name": f"{stack} proxy" if stack else "front",
            "running": None if isinstance(proxy, Unknown) else known is not None,
            "version": known and known.version,
            "since": known and _moment(known.started),
            "connections": None,
            "reloads": None,
            "old": None,
        }
        if processes is not None and not isinstance(processes, Unknown):
            present = [one.connections for one in processes if one.role == "worker" and not one.old]
            value["connections"] = None if None in present else sum(filter(None, present))
            value["reloads"] = next((one.reloads for one in processes if one.role == "master"), None)
            value["old"] = [
                {"pid": one.pid, "connections": one.connections}
                for one in processes
                if one.old and one.role == "worker"
            ]
            value["old"] += [{"pid": one.pid, "connections": None} for one in _former(actual, stack)]
        yield value


def _former(actual: Actual, stack: str) -> list[Container]:
    """Containers of a proxy that was turned over: they end with their last call, and cannot be asked any more."""
    found = actual.stack_containers(stack) if stack else ()
    containers = () if isinstance(found, Unknown) else found
    return [
        one for one in containers if one.service == "proxy" and one.state == "running" and one.restart_policy == "no"
    ]


def _certificates(actual: Actual) -> Iterator[dict[str, Any]]:
    """Each certificate file that was laid down, as it lies on the host; days left by the host's own clock."""
    if isinstance(actual.certificates, Unknown) or isinstance(actual.clock, Unknown):
        return
    for path, pem in actual.certificates.items():
        value: dict[str, Any] = {"path": path, "name": None, "until": None, "days": None, "problem": ""}
        if pem is None:
            value["problem"] = "not there yet"
        elif isinstance(pem, Unknown):
            value["problem"] = f"could not be read: {pem.reason}"
        elif (found := served(pem)) is None:
            value["problem"] = "no certificate that can be read"
        else:
            value |= {
                "name": found.name,
                "until": _moment(found.until),
                "days": (found.until - actual.clock.unix) // 86400,
            }
        yield value


def _ending(certificates: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for one in certificates:
        days = one["days"]
        if days is not None and days < ENDING_DAYS:
            said = f"ends in {days} days" if days >= 0 else "has expired"
            yield f"the certificate of {one['name']} {said} ({one['path']})"


def _services(site: Site, actual: Actual) -> Iterator[dict[str, Any]]:
    """What runs, by service and image; workers of one image in one line. `released`: it is what the release pins."""
    if isinstance(actual.containers, Unknown):
        return
    pins = {site.image(name): site.release.images[name] for name in site.required_images}
    running = [one for one in actual.containers if one.stack is not None and one.state == "running"]
    groups = Counter((str(one.stack), _base(one.service or one.name), one.image) for one in running)
    versions = {one.image: one.labels.get("org.opencontainers.image.version") for one in running}
    for (stack, service, image), count in sorted(groups.items()):
        name, _, digest = image.partition("@")
        tag = pins[image].tag if image in pins else versions[image]
        if not digest and not tag:
            tag = name.rpartition("/")[2].partition(":")[2] or None
        yield {
            "stack": stack,
            "service": service,
            "containers": count,
            "image": name,
            "tag": tag,
            "digest": digest or None,
            "released": image in pins,
        }


def _base(service: str) -> str:
    return service.partition("-")[0] if re.fullmatch(r"worker-\d+", service) else service


def _unreleased(services: Iterable[Mapping[str, Any]], site: Site) -> Iterator[str]:
    for one in services:
        if not one["released"]:
            what = one["tag"] or (one["digest"] or "")[:19] or one["image"]
            times = f" ({one['containers']} containers)" if one["containers"] > 1 else ""
            name = f"{one['stack']}/{one['service']}{times}"
            yield f"{name} runs {what}, which release {site.release.release} does not pin"


def _moment(unix: int | None) -> str | None:
    """Unix seconds as ISO 8601 in UTC."""
    return None if unix is None else f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%dT%H:%M:%SZ}"


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
